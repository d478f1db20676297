"""Tools that the proxy itself runs between two turns of a model, within one answer."""
