"""
What test files share: certificates, handlers that take notes, peers of other makes and of none.
"""
