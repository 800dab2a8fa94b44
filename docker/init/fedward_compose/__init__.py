"""What only the compose topology needs: settings and keys for each container, and a first study."""
