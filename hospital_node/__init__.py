"""The hospital's side, in two halves that share nothing but a private socket.

`trainer` holds the data and has no network. `link` has the network and holds no data. What leaves
passes one door, `outbound`.
"""
