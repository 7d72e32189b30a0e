"""Data sets as they lie in their files, whatever their format; those the configs name, the demo's.

Nothing here imports the other rooms.
"""
