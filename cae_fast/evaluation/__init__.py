# SPDX-License-Identifier: Apache-2.0
"""How good explanations are, measured beside other methods on the same images and classifier."""
