"""Keys and certificates of a federation: a CA, leaves, node keys; enrol, rotate, revoke.

The nouns are `CA`, `Leaf` and the error tree; `certs.local.make_federation` makes a whole
federation's files at once. Nothing in here imports another part of fedward.
"""

from certs.ca import CA
from certs.errors import CertError
from certs.leaf import Leaf
from certs.names import Role, check_site

__all__ = ["CA", "CertError", "Leaf", "Role", "check_site"]
