"""Comparison of methods: one teacher, the plain student, and every method, over several seeds."""
