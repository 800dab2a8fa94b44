"""The half with data and no network: loads the base model once and trains the adapters it is sent.

    python -m hospital_node.trainer --site SITE.toml

`listener` reads frames from the link, `inbox` decides which of them are signed requests worth
doing, `worker` does them one at a time through `tasks`, and `hospital_node.outbound` is the one
door for the answer.
"""
