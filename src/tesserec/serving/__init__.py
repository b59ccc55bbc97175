"""The service: recommendations over HTTP from a bundle, with events that are never lost.

    app (HTTP) ─► engine ─► ladder ─► loaded_model          which items, within the deadline
                   │  └───► slate, explain                  what is shown of them, and why
                   ├──────► live_catalog ─► filters, search what there is to show at this revision
                   └──────► store ─► sqlite │ postgres │ redis    events, items, impressions, on disk before the reply
    versions ─► gate ─► deployment                          which bundle answers

Ids are strings here, everywhere: the dense indices of the other stages begin in ``loaded_model``.
"""
