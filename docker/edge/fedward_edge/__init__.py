"""Keeps HAProxy in step with its files: certificates, revocation list and the list of hospitals.

The standard library alone, so that the edge's image holds no package but HAProxy.
"""
