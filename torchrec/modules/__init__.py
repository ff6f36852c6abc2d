"""Embedding collections, dense and cross layers, feature processors, pools."""
