"""
What test files share: certificates, handlers that take notes, and peers of every kind.
"""
