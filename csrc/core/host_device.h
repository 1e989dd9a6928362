// SPDX-License-Identifier: Apache-2.0
// Marks what host and device compile alike.
#pragma once

#if defined(__CUDACC__)
#define CAE_HD __host__ __device__
#else
#define CAE_HD
#endif
