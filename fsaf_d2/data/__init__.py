"""Where images come from.

Three rooms: reading, checking and loading. The latter two use the first, and nothing else of each
other.
"""
