"""The usual way to write a federated fine-tuning app for Flower."""
