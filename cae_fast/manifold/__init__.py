# SPDX-License-Identifier: Apache-2.0
"""The class-associated manifold: the codes of a bank as a whole.

`choice` says which rows are exemplars, `graph` and `paths` how a guided path goes there, `views`
and `measures` what the manifold looks like, `directions` what changes along its principal axes.
"""
