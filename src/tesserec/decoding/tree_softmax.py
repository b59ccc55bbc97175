"""A softmax over items as a product of softmaxes over the children of each prefix of their codes.

At every level the softmax runs over the legal children of the prefix only, so that training and constrained decoding
see the same tree. A child scores scale · cosine(query, code vector + node vector); the query is made of the state and
of the prefix's own vector. Only nodes with enough training targets have a node vector: others use their nearest
ancestor's, so that a child that was never trained is its parent plus its code. Where the vectors of all items are at
hand, the mean of those below a node is added to its vector, and a child is also near what its items are near.

Dimensions: S states · P pairs of state and item · U pairs of state and prefix · E children of all prefixes · B requests
· M beams · C children · N items · L levels · R rows · D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.decoding.beginnings import Future
from tesserec.decoding.trie import Trie
from tesserec.errors import ResourceError

__all__ = ["NodeRows", "TreeSoftmax"]

LARGE_PRODUCT = 100
"""Products of a query and a child, on average a parent, from which on they are worked out parent by parent."""


class NodeRows:
    """Which prefixes have a vector of their own: depth and mixed-radix key of each."""

    def __init__(self, depth_R: Tensor, key_R: Tensor) -> None:
        self.depth_R, self.key_R = depth_R, key_R

    @classmethod
    def chosen(cls, trie: Trie, counts_N: Tensor, least: int, most: int) -> NodeRows:
        """Prefixes of length ≥ 2 with at least ``least`` training targets below them, the ``most`` most frequent ones.

        Prefixes of length 1 have none: there the code's own vector says the same.
        """
        keys = prefix_keys(trie)
        depths, values, counts = [], [], []
        for depth in range(2, trie.num_levels + 1):
            count = torch.bincount(trie.paths_NL[:, depth - 1], counts_N.double(), minlength=trie.num_nodes(depth))
            worth = count >= least
            depths.append(torch.full((int(worth.sum()),), depth))
            values.append(keys[depth - 1][worth])
            counts.append(count[worth])
        if not depths:
            return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        order = torch.argsort(torch.cat(counts), descending=True, stable=True)[:most].sort().values
        return cls(torch.cat(depths)[order], torch.cat(values)[order])

    def moved(self, earlier: NodeRows, vectors_RD: Tensor) -> Tensor:
        """Another fit's vectors in the order of these prefixes, [R + 1, D]; zero where it had none."""
        place = {
            pair: row for row, pair in enumerate(zip(earlier.depth_R.tolist(), earlier.key_R.tolist(), strict=True))
        }
        wanted = zip(self.depth_R.tolist(), self.key_R.tolist(), strict=True)
        source = torch.tensor([place.get(pair, len(place)) for pair in wanted] + [len(place)])
        return vectors_RD[source]

    def of_nodes(self, trie: Trie) -> list[Tensor]:
        """For depths 1 … L, the row of each node or of its nearest ancestor with one; R where there is none."""
        rows = [torch.full((trie.num_nodes(1),), len(self.key_R))]
        keys = prefix_keys(trie)
        for depth in range(2, trie.num_levels + 1):
            inherited = rows[-1].repeat_interleave(trie.child_offsets[depth - 1].diff().long())
            mine = (self.depth_R == depth).nonzero().squeeze(1)
            own_keys, order = self.key_R[mine].sort()
            if len(own_keys):
                place = torch.searchsorted(own_keys, keys[depth - 1]).clamp(max=len(own_keys) - 1)
                inherited = torch.where(own_keys[place] == keys[depth - 1], mine[order[place]], inherited)
            rows.append(inherited)
        return rows


def prefix_keys(trie: Trie) -> list[Tensor]:
    """For depths 1 … L, each node's prefix as one number in mixed radix: the same in every trie of the codebooks.

    Raises ``ResourceError`` where such a number may need more than 63 bits.
    """
    sizes = [trie.codebook_sizes[level] for level in trie.order]
    if math.prod(sizes) >= 2**63:
        raise ResourceError(
            f"prefixes of codebooks of {sizes} codes need more than 63 bits: use fewer or smaller levels"
        )
    keys, above = [], torch.zeros(1, dtype=torch.int64)
    for level, size in enumerate(sizes):
        above = above.repeat_interleave(trie.child_offsets[level].diff().long()) * size + trie.child_codes[level]
        keys.append(above)
    return keys


class TreeSoftmax(nn.Module):
    """log p(item | state) = Σ_l log softmax over the children of the item's prefix of length l."""

    row_depth: Tensor
    row_key: Tensor

    def __init__(  # parts that the network has at hand
        self,
        trie: Trie,
        rows: NodeRows,
        width: int,
        scale: float,
        of_items: bool = False,
    ) -> None:
        """``of_items``: the nodes are made of the items below them too, which ``place`` must tell."""
        super().__init__()
        self.trie = trie
        self.share = nn.Parameter(torch.ones(trie.num_levels)) if of_items else None
        self._placed: Sequence[tuple[Tensor, Tensor]] = ()
        """Of each level, where the vectors of all items are at hand: vectors and unit vectors of its nodes."""
        self._kept_units: dict[int, Tensor] = {}
        self._kept_prefixes: dict[int, Tensor] = {}
        self._item_bounds = [bounds.long() for bounds in trie.item_bounds[1:]]
        codebook_sizes = [trie.codebook_sizes[level] for level in trie.order]
        starts = [sum(codebook_sizes[:level]) for level in range(len(codebook_sizes))]
        nodes = zip(starts, trie.child_codes, rows.of_nodes(trie), strict=True)
        self._nodes = [(start + code.long(), row) for start, code, row in nodes]
        self.codes = nn.Embedding(sum(codebook_sizes), width)
        self.rows = nn.Embedding(len(rows.key_R) + 1, width, padding_idx=len(rows.key_R))
        self.mixers = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width)) for _ in codebook_sizes
        )
        self.log_scale = nn.Parameter(torch.full((len(codebook_sizes),), math.log(scale)))
        self.register_buffer("row_depth", rows.depth_R)
        self.register_buffer("row_key", rows.key_R)
        nn.init.normal_(self.codes.weight, std=width**-0.5)
        nn.init.zeros_(self.rows.weight)

    def train(self, mode: bool = True) -> TreeSoftmax:
        """As of every module; what was kept of the weights before is forgotten."""
        self._kept_units, self._kept_prefixes, self._placed = {}, {}, ()
        super().train(mode)
        return self

    def place(self, units_ND: Tensor) -> None:
        """Take the unit vectors of all items, until the next call of this or of ``train``; for ``of_items``."""
        assert self.share is not None
        sizes = [len(code) for code, _ in self._nodes]
        means = []
        for path_N, bounds in zip(self.trie.paths_NL.T, self._item_bounds, strict=True):
            sums = units_ND.new_zeros(len(bounds) - 1, units_ND.shape[1]).index_add(0, path_N, units_ND)
            means.append(sums / bounds.diff()[:, None])
        share = self.share.repeat_interleave(torch.tensor(sizes, device=self.share.device))[:, None]
        # All levels at once: the gradient of a table is made once, however often it is read.
        code, row = (torch.cat(one) for one in zip(*self._nodes, strict=True))
        vectors = self.codes(code) + self.rows(row) + share * torch.cat(means)
        units = F.normalize(vectors, dim=-1)
        self._placed = list(zip(torch.split(vectors, sizes), torch.split(units, sizes), strict=True))

    def children_log_probs(
        self,
        level: int,
        states_BD: Tensor,
        nodes_BM: Tensor,
        children_BMC: Tensor,
        bonus_BG: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities [B, M, C] of the children of nodes of depth ``level``; −inf for a child of −1.

        ``bonus_BG`` is added to the logits, a column a node of depth ``level`` + 1.
        """
        if level == 0:
            row_B = torch.arange(len(nodes_BM), device=nodes_BM.device)
            query_BD = self._query(0, states_BD, row_B, nodes_BM[:, 0])
            logits_BMC = (query_BD @ self._units(0, children_BMC[0, 0]).T).float()[:, None]
        else:
            logits_BMC = self._cosines(level, states_BD, nodes_BM, children_BMC.shape[2])
        logits_BMC = logits_BMC * self.log_scale[level].exp()
        if bonus_BG is not None:
            picked_BX = bonus_BG.gather(1, children_BMC.clamp(min=0).flatten(1))
            logits_BMC = logits_BMC + picked_BX.view(children_BMC.shape)
        logits_BMC = logits_BMC.masked_fill(children_BMC < 0, -torch.inf)
        return logits_BMC.log_softmax(-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def _cosines(self, level: int, states_BD: Tensor, nodes_BM: Tensor, num_children: int) -> Tensor:
        """The cosine of each beam's query with the children of its node, [B, M, C]; 0 past the last child.

        And for an only child, whose probability is 1 whatever it is.
        """
        branches_BM = (nodes_BM >= 0) & self._branches(level, nodes_BM.clamp(min=0))
        beam_U = branches_BM.flatten().nonzero().squeeze(1)
        parent_U = nodes_BM.flatten()[beam_U]
        query_UD = self._query(level, states_BD, beam_U // nodes_BM.shape[1], parent_U)
        start_U, owner_E, child_E = self._children(level, parent_U)
        cosine_E = self._child_cosines(level, query_UD, parent_U, start_U, owner_E, child_E).float()
        place_E = torch.arange(len(owner_E), device=beam_U.device) - start_U[owner_E]
        cosines_XC = cosine_E.new_zeros(nodes_BM.numel(), num_children)
        cosines_XC[beam_U[owner_E], place_E] = cosine_E
        return cosines_XC.view(*nodes_BM.shape, num_children)

    def path_log_probs(
        self,
        states_SD: Tensor,
        state_P: Tensor,
        items_P: Tensor,
        bonuses: Sequence[Tensor] | None = None,
        future: Future | None = None,
    ) -> Tensor:
        """Log-probability [P] of item ``items_P`` given state ``state_P`` (an index into S), summed over levels.

        ``bonuses`` are added to the logits of each level, [S, nodes of depth level + 1], and what ``future`` says.
        """
        return self._along_paths(states_SD, state_P, items_P, bonuses, future, None)[0]

    def distilled(  # noqa: PLR0917  # parts that the network has at hand
        self,
        states_SD: Tensor,
        state_P: Tensor,
        items_P: Tensor,
        teacher_SN: Tensor,
        bonuses: Sequence[Tensor] | None = None,
        future: Future | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``path_log_probs``, and for each pair how well the softmaxes on its path agree with a teacher's [P].

        ``teacher_SN`` are log-probabilities of all items; work grows with the states that the pairs have. The
        agreement is Σ_l Σ_children q · log p, where q is what the teacher gives the items below each child of the
        prefix, of what it gives those below the prefix.
        """
        kept_s, state_P = torch.unique(state_P, return_inverse=True)
        bonuses = None if bonuses is None else [bonus_SG[kept_s] for bonus_SG in bonuses]
        future = None if future is None else future.take(kept_s)
        taught_sN = teacher_SN[kept_s].index_select(1, self.trie.items).exp_().cumsum_(1)
        return self._along_paths(states_SD[kept_s], state_P, items_P, bonuses, future, taught_sN)

    def _along_paths(  # noqa: PLR0917  # the sum of both above
        self,
        states_SD: Tensor,
        state_P: Tensor,
        items_P: Tensor,
        bonuses: Sequence[Tensor] | None,
        future: Future | None,
        summed_SN: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        total_P = torch.zeros(len(items_P), device=states_SD.device)
        agreed_P = torch.zeros_like(total_P)
        parent_P = torch.zeros_like(items_P)
        for level in range(self.trie.num_levels):
            child_P = self.trie.paths_NL[items_P, level]
            bonus_SG = None if bonuses is None else bonuses[level]
            # An only child has probability 1, and there teacher and tree agree.
            pair_Q = self._branches(level, parent_P).nonzero().squeeze(1)
            found_Q, same_Q = self._level_log_probs(
                level, states_SD, state_P[pair_Q], parent_P[pair_Q], child_P[pair_Q], bonus_SG, future, summed_SN
            )
            total_P, agreed_P = total_P.index_add(0, pair_Q, found_Q), agreed_P.index_add(0, pair_Q, same_Q)
            parent_P = child_P
        return total_P, agreed_P

    def _level_log_probs(  # noqa: PLR0917  # one step of the sum above
        self,
        level: int,
        states_SD: Tensor,
        state_P: Tensor,
        parent_P: Tensor,
        child_P: Tensor,
        bonus_SG: Tensor | None,
        future: Future | None,
        summed_SN: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Each pair's log-probability of its child, and the agreement of its parent's softmax with a teacher.

        Every (state, parent) is worked out once.
        """
        size = self.trie.num_nodes(level)
        key_U, pair_P = torch.unique(state_P * size + parent_P, return_inverse=True)
        state_U, parent_U = key_U // size, key_U % size
        query_UD = self._query(level, states_SD, state_U, parent_U)
        scale = self.log_scale[level].exp()
        if level == 0:
            units_CD = self._units(0, torch.arange(self.trie.num_nodes(1), device=query_UD.device))
            logits_UC = (query_UD @ units_CD.T).float() * scale
            logits_UC = logits_UC if bonus_SG is None else logits_UC + bonus_SG[state_U]
            every_C = torch.arange(logits_UC.shape[1], device=states_SD.device)
            if future is not None:
                logits_UC = logits_UC + future.of_nodes(0, state_U[:, None], every_C)
            log_probs_UC = logits_UC.log_softmax(-1)
            agreed_U = torch.zeros(len(key_U), device=states_SD.device)
            if summed_SN is not None:
                agreed_U = (self._taught(0, summed_SN, state_U[:, None], every_C) * log_probs_UC).sum(1)
            return log_probs_UC[pair_P, child_P], agreed_U[pair_P]
        start_U, owner_E, child_E = self._children(level, parent_U)
        logits_E = self._child_cosines(level, query_UD, parent_U, start_U, owner_E, child_E).float() * scale
        logits_E = logits_E if bonus_SG is None else logits_E + bonus_SG[state_U[owner_E], child_E]
        if future is not None:
            logits_E = logits_E + future.of_nodes(level, state_U[owner_E], child_E)
        most_U = torch.full((len(key_U),), -torch.inf).scatter_reduce(0, owner_E, logits_E.detach(), "amax")
        sum_U = torch.zeros(len(key_U)).index_add(0, owner_E, (logits_E - most_U[owner_E]).exp())
        place_P = start_U[pair_P] + child_P - self.trie.child_offsets[level][parent_P]
        total_U = most_U + sum_U.log()
        agreed_U = torch.zeros(len(key_U), device=states_SD.device)
        if summed_SN is not None:
            taught_E = self._taught(level, summed_SN, state_U[owner_E], child_E)
            taught_U = torch.zeros(len(key_U)).index_add(0, owner_E, taught_E).clamp(min=1e-9)
            log_probs_E = logits_E - total_U[owner_E]
            agreed_U = agreed_U.index_add(0, owner_E, taught_E / taught_U[owner_E] * log_probs_E)
        return logits_E[place_P] - total_U[pair_P], agreed_U[pair_P]

    def _taught(self, level: int, summed_SN: Tensor, states: Tensor, nodes: Tensor) -> Tensor:
        """What a teacher gives the items below nodes of depth ``level`` + 1.

        ``summed_SN`` are its probabilities summed up in the order of the leaves, in which the items of a node are
        neighbours.
        """
        start, end = self._item_bounds[level][nodes], self._item_bounds[level][nodes + 1]
        before = summed_SN[states, (start - 1).clamp(min=0)].masked_fill(start == 0, 0)
        return (summed_SN[states, end - 1] - before).clamp(min=0)

    def _branches(self, level: int, nodes: Tensor) -> Tensor:
        """Whether nodes of depth ``level`` have several children."""
        offsets = self.trie.child_offsets[level]
        return offsets[nodes + 1] - offsets[nodes] > 1

    def _children(self, level: int, parent_U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The children of each parent, one after the other: (where each parent's start, whose each is, its node)."""
        first_U = self.trie.child_offsets[level][parent_U].long()
        count_U = self.trie.child_offsets[level][parent_U + 1] - first_U
        start_U = count_U.cumsum(0) - count_U
        owner_E = torch.repeat_interleave(torch.arange(len(parent_U), device=parent_U.device), count_U)
        child_E = torch.arange(len(owner_E), device=parent_U.device) + (first_U - start_U)[owner_E]
        return start_U, owner_E, child_E

    def _child_cosines(  # noqa: PLR0917  # one product
        self, level: int, query_UD: Tensor, parent_U: Tensor, start_U: Tensor, owner_E: Tensor, child_E: Tensor
    ) -> Tensor:
        """Each query times the unit vectors of its parent's children, [E]."""
        parent_G, group_U, size_G = torch.unique(parent_U, return_inverse=True, return_counts=True)
        if len(child_E) <= LARGE_PRODUCT * len(parent_G):
            return (query_UD[owner_E] * self._units(level, child_E)).sum(-1)
        # A matrix product a parent: its children's vectors are not copied for each query.
        _, owner_F, child_F = self._children(level, parent_G)
        units = torch.split(self._units(level, child_F), torch.bincount(owner_F).tolist())
        order_U = torch.argsort(group_U, stable=True)
        queries = torch.split(query_UD[order_U], size_G.tolist())
        products = torch.cat([(query @ unit.T).flatten() for query, unit in zip(queries, units, strict=True)])
        count_U = torch.bincount(owner_E)
        found_U = torch.empty_like(start_U)
        found_U[order_U] = count_U[order_U].cumsum(0) - count_U[order_U]
        return products[torch.arange(len(products), device=products.device) + (found_U - start_U)[owner_E]]

    def _query(self, level: int, states_SD: Tensor, state_U: Tensor, parent_U: Tensor) -> Tensor:
        """Unit query vectors [U, D] = state + mixer(state, vector of the prefix), without a prefix for the root.

        The mixer's first layer is worked out apart for states and for prefixes, which are fewer than their pairs.
        """
        first, last = self._mixer(level)
        hidden_UD = F.linear(states_SD, first.weight[:, : states_SD.shape[1]], first.bias)[state_U]
        if level:
            hidden_UD = hidden_UD + self._prefixes(level, parent_U)
        return F.normalize(states_SD[state_U] + last(F.gelu(hidden_UD)), dim=-1)

    def _prefixes(self, level: int, nodes: Tensor) -> Tensor:
        """What the first layer of a mixer makes of nodes of depth ``level``; kept as ``_units`` are."""
        weight = self._mixer(level)[0].weight[:, self.codes.embedding_dim :]
        if self.training or torch.is_grad_enabled():
            return F.linear(self._vectors(level - 1, nodes), weight)
        if level not in self._kept_prefixes:
            every = torch.arange(self.trie.num_nodes(level), device=nodes.device)
            self._kept_prefixes[level] = F.linear(self._vectors(level - 1, every), weight)
        return self._kept_prefixes[level][nodes]

    def _mixer(self, level: int) -> tuple[nn.Linear, nn.Linear]:
        layers = cast("nn.Sequential", self.mixers[level])
        return cast("nn.Linear", layers[0]), cast("nn.Linear", layers[2])

    def _units(self, level: int, nodes: Tensor) -> Tensor:
        """Vectors of nodes of depth ``level`` + 1, scaled to length 1; outside of training all of them are kept."""
        if self._placed:
            return self._placed[level][1][nodes]
        if self.training or torch.is_grad_enabled():
            return F.normalize(self._vectors(level, nodes), dim=-1)
        if level not in self._kept_units:
            every = torch.arange(self.trie.num_nodes(level + 1), device=nodes.device)
            self._kept_units[level] = F.normalize(self._vectors(level, every), dim=-1)
        return self._kept_units[level][nodes]

    def _vectors(self, level: int, nodes: Tensor) -> Tensor:
        """Code vector + node vector (+ share · mean of the items) of nodes of depth ``level`` + 1."""
        if self._placed:
            return self._placed[level][0][nodes]
        assert self.share is None, "nodes made of items are placed first"
        code, row = self._nodes[level]
        return torch.as_tensor(self.codes(code[nodes]) + self.rows(row[nodes]))
