"""What the commands do: ``fsaf-d2 train`` and the others, and the scripts of a checkout.

Each file has ``main(argv, program)`` with the command's options; ``program`` is the name that help
and errors have for it.
"""
