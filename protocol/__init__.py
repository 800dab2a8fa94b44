"""What the aggregator, the hospitals and the control plane agree on, and nothing else.

Settings (`study`, `site`), the frozen messages that cross the wire (`messages`, `envelope`), the
adapter's layout (`manifest`) and encodings (`codec`), states, events and metric names. Nothing
here imports torch or Flower, and nothing here imports another fedward package.
"""
