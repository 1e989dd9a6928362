# SPDX-License-Identifier: Apache-2.0
"""Explaining on many machines with Ray: runs over image folders, and the service in replicas."""

from __future__ import annotations
