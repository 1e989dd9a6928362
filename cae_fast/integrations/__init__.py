# SPDX-License-Identifier: Apache-2.0
"""Explanations as other libraries want them."""
