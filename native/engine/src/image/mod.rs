//! Where the initial content of a volume comes from.
