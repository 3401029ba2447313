"""The domain: named objects and their rules.

entries and registry: names, claims, who stands on whom · turns: whose turn it is · lifecycle: create, delete, cascade,
undo · config_file: the configuration applied at start · events: what happened.
"""
