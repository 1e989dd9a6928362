// SPDX-License-Identifier: Apache-2.0
// One function per part of the module cae_fast._C.
#pragma once

#include <pybind11/pybind11.h>

void bind_ops(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_search(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);
void bind_device_array(pybind11::module_& m);
void bind_gpu(pybind11::module_& m);
void bind_gpu_search(pybind11::module_& m);
void bind_graph_sequence(pybind11::module_& m);
