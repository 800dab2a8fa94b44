"""The half with network and no data: a SuperNode, and a thin ClientApp in front of the trainer.

    aggregator <-- TLS --> SuperNode <-- loopback TLS --> executor --fork--> ClientApp --> trainer

`__main__` keeps the processes alive, `supernode` and `executor` start Flower's own with their known
traps closed, `client_app` passes one message on, `report` tells the aggregator how the node is.
Nothing here imports torch, and nothing here is given the path of a data file.
"""
