"""The paper's objective and its loop over tensors. It knows neither the store nor how
methods are chosen.
"""
