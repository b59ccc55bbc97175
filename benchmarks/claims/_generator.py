"""The small generator of the claims about tables: Mosaic that sees codes only and answers with what it generates."""

from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.mosaic import HeadsConfig, Mosaic, RowsConfig
from tesserec.training.loop import TrainingConfig

__all__ = ["generator"]


def generator(min_events: int = 5, epochs: int = 5) -> Mosaic:
    """A fresh one; a prefix with at least ``min_events`` training targets has a vector of its own in the tree."""
    return Mosaic(
        model=TransformerConfig(width=64, num_layers=1, num_heads=2, dropout=0.2),
        max_length=20,
        rows=RowsConfig(min_events=min_events),
        heads=HeadsConfig(generative_weight=1.0, num_negatives=256, num_beams=20),
        targets="events",
        inputs=("codes",),
        answer="generative",
        training=TrainingConfig(epochs=epochs, batch_size=256, learning_rate=2e-3),
    )
