// SPDX-License-Identifier: Apache-2.0
// A block keeps the distances of a part of the bank in registers and picks the nearest k one after
// the other; a second kernel picks from what the parts found.
#include "core/check.h"
#include "cuda/nearest_cuda.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace cae::cuda {
namespace {

constexpr int kNearestThreads = 256;
constexpr int kNearestWarps = kNearestThreads / 32;
constexpr int kThreadRows = 8;
constexpr int kPartRows = kNearestThreads * kThreadRows;
constexpr int32_t kNoRow = INT32_MAX;
// Shared memory: the code of the image, then a candidate of each warp.
constexpr uint32_t kDistancesAt = kMaxNearestDim * 8;
constexpr uint32_t kRowsAt = kDistancesAt + kNearestWarps * 8;
constexpr uint32_t kNearestShared = kRowsAt + kNearestWarps * 4;

int64_t nearest_parts(int32_t rows) {
  return (static_cast<int64_t>(rows) + kPartRows - 1) / kPartRows;
}

/// Parameters of the kernels: what was found by parts.
struct NearestJob {
  NearestParams p;
  int32_t parts;
  int32_t part_k;         // candidates of a part
  double* part_distance;  // [N][parts][part_k]
  int32_t* part_row;      // [N][parts][part_k], kNoRow where there is none
};

/// A row of the bank by its distance; the lower row of equal ones comes first. kNoRow comes last.
struct Candidate {
  double distance;
  int32_t row;

  KFN_MEMBER bool before(const Candidate& other) const {
    if (row == kNoRow || other.row == kNoRow) {
      return row != kNoRow;
    }
    return distance < other.distance || (distance == other.distance && row < other.row);
  }
};

/// First of all candidates of the block, for all threads. Every thread calls.
KFN Candidate block_first(Candidate mine, int tid, uint32_t shared) {
  UNROLL for (int m = 1; m < 32; m <<= 1) {
    const Candidate other{dev::shfl_xor(mine.distance, m), dev::shfl_xor(mine.row, m)};
    mine = other.before(mine) ? other : mine;
  }
  dev::sync();  // all have read what the last call left
  if ((tid & 31) == 0) {
    dev::stsd(shared + kDistancesAt + (tid >> 5) * 8, mine.distance);
    dev::sts32(shared + kRowsAt + (tid >> 5) * 4, static_cast<uint32_t>(mine.row));
  }
  dev::sync();
  Candidate first{0.0, kNoRow};
  UNROLL for (int w = 0; w < kNearestWarps; ++w) {
    const Candidate next{dev::ldsd(shared + kDistancesAt + w * 8),
                         static_cast<int32_t>(dev::lds32(shared + kRowsAt + w * 4))};
    first = next.before(first) ? next : first;
  }
  return first;
}

KFN double square_of(float code, double point) {
  const double difference = dev::add(static_cast<double>(code), -point);
  return dev::mul(difference, difference);
}

/// Squared distance of a code [dim] to the point in shared memory, summed in NumPy's order.
KFN double squared_distance(const float* code, int dim, uint32_t point) {
  double sum = 0.0;
  int i = 0;
  if (dim >= 8) {
    double partial[8];
    UNROLL for (int j = 0; j < 8; ++j) {
      partial[j] = square_of(dev::load(code + j), dev::ldsd(point + j * 8));
    }
    for (i = 8; i + 8 <= dim; i += 8) {
      UNROLL for (int j = 0; j < 8; ++j) {
        partial[j] = dev::add(partial[j],
                              square_of(dev::load(code + i + j), dev::ldsd(point + (i + j) * 8)));
      }
    }
    sum = dev::add(dev::add(dev::add(partial[0], partial[1]), dev::add(partial[2], partial[3])),
                   dev::add(dev::add(partial[4], partial[5]), dev::add(partial[6], partial[7])));
  }
  for (; i < dim; ++i) {
    sum = dev::add(sum, square_of(dev::load(code + i), dev::ldsd(point + i * 8)));
  }
  return sum;
}

struct Wanted {
  bool needed;
  int32_t source;
  int32_t target;

  KFN_MEMBER bool takes(int32_t row_class) const {
    return row_class >= 0 &&
           (target == search::kAnyTarget ? row_class != source : row_class == target);
  }
};

KFN Wanted wanted_of(const NearestParams& p, int64_t image) {
  const int32_t source = dev::load(&p.states[image].source_class);
  const int32_t target = dev::load(&p.states[image].target_class);
  return {source != search::kUndefined && source != target, source, target};
}

KERNEL void __launch_bounds__(kNearestThreads, 1) nearest_parts_kernel(const NearestJob job) {
  dev::pdl_launch();
  dev::pdl_wait();
  const NearestParams& p = job.p;
  const int tid = dev::tid();
  const int64_t image = dev::bx() / job.parts;
  const int part = dev::bx() % job.parts;
  const Wanted wanted = wanted_of(p, image);
  if (!wanted.needed) {
    return;
  }
  const uint32_t shared = dev::smem_base();
  if (tid < p.code_dim) {
    dev::stsd(shared + tid * 8, static_cast<double>(dev::load(p.codes + image * p.code_dim + tid)));
  }
  dev::sync();
  Candidate mine[kThreadRows];
  UNROLL for (int i = 0; i < kThreadRows; ++i) {
    const int64_t row = static_cast<int64_t>(part) * kPartRows + i * kNearestThreads + tid;
    mine[i] = {0.0, kNoRow};
    if (row < p.rows && wanted.takes(dev::load(p.bank_class + row))) {
      mine[i] = {squared_distance(p.bank_codes + row * p.code_dim, p.code_dim, shared),
                 static_cast<int32_t>(row)};
    }
  }
  const int64_t out = (image * job.parts + part) * job.part_k;
  for (int place = 0; place < job.part_k; ++place) {
    Candidate next{0.0, kNoRow};
    UNROLL for (int i = 0; i < kThreadRows; ++i) { next = mine[i].before(next) ? mine[i] : next; }
    const Candidate first = block_first(next, tid, shared);
    UNROLL for (int i = 0; i < kThreadRows; ++i) {
      mine[i].row = mine[i].row == first.row ? kNoRow : mine[i].row;  // taken
    }
    if (tid == 0) {
      dev::store(job.part_distance + out + place, first.distance);
      dev::store(job.part_row + out + place, first.row);
    }
  }
}

/// Writes the image's nearest rows. Returns how many there are; every thread calls.
KFN int choose_nearest(const NearestJob& job, int64_t image, int tid, uint32_t shared) {
  const int64_t count = static_cast<int64_t>(job.parts) * job.part_k;
  const int64_t first_candidate = image * count;
  Candidate last{-1.0, -1};
  for (int place = 0; place < job.p.k; ++place) {
    Candidate next{0.0, kNoRow};
    for (int64_t i = tid; i < count; i += kNearestThreads) {
      const Candidate candidate{dev::load(job.part_distance + first_candidate + i),
                                dev::load(job.part_row + first_candidate + i)};
      if (last.before(candidate) && candidate.row != kNoRow && candidate.before(next)) {
        next = candidate;
      }
    }
    last = block_first(next, tid, shared);
    if (last.row == kNoRow) {
      return place;
    }
    if (tid == 0) {
      dev::store(job.p.nearest + image * job.p.k + place, last.row);
    }
  }
  return job.p.k;
}

KERNEL void __launch_bounds__(kNearestThreads, 1) nearest_kernel(const NearestJob job) {
  dev::pdl_launch();
  dev::pdl_wait();
  const NearestParams& p = job.p;
  const int tid = dev::tid();
  const int64_t image = dev::bx();
  const bool needed = wanted_of(p, image).needed;
  const int found = needed ? choose_nearest(job, image, tid, dev::smem_base()) : 0;
  int32_t* const nearest = p.nearest + image * p.k;
  dev::sync();  // the rows are written
  const bool enough = needed && found == p.k;
  if (tid < p.code_dim) {
    float end = dev::load(p.codes + image * p.code_dim + tid);
    if (enough) {
      double sum = 0.0;
      for (int i = 0; i < p.k; ++i) {
        const int64_t row = dev::load(nearest + i);
        const float code = dev::load(p.bank_codes + row * p.code_dim + tid);
        sum = dev::add(sum, static_cast<double>(code));
      }
      const auto mean = static_cast<float>(sum / p.k);
      const double start = dev::mul(1.0 - p.reach, static_cast<double>(end));
      const double beyond = dev::add(start, dev::mul(p.reach, static_cast<double>(mean)));
      end = p.reach == 1.0 ? mean : static_cast<float>(beyond);
    }
    dev::store(p.ends + image * p.code_dim + tid, end);
  }
  if (tid == 0) {
    dev::store(p.missing + image, needed ? p.k - found : 0);
  }
  for (int i = tid; i < p.k && !enough; i += kNearestThreads) {
    dev::store(nearest + i, -1);
  }
}

int32_t part_candidates(int32_t k) { return k < kPartRows ? k : kPartRows; }

}  // namespace

size_t nearest_workspace_bytes(int32_t images, int32_t rows, int32_t k) {
  const auto candidates = static_cast<size_t>(images) * static_cast<size_t>(nearest_parts(rows)) *
                          static_cast<size_t>(part_candidates(k));
  return candidates * (sizeof(double) + sizeof(int32_t));
}

void nearest_codes(const NearestParams& p, void* stream) {
  if (p.images == 0) {
    return;
  }
  CAE_CHECK(p.images > 0 && p.rows >= 0, "images and rows must not be negative, got ", p.images,
            " and ", p.rows);
  CAE_CHECK(p.code_dim >= 1 && p.code_dim <= kMaxNearestDim, "code_dim must be in [1, ",
            kMaxNearestDim, "], got ", p.code_dim);
  CAE_CHECK(p.k >= 1, "k must be at least 1, got ", p.k);
  CAE_CHECK(p.reach >= 1.0, "reach must be at least 1, got ", p.reach);
  const int64_t parts = nearest_parts(p.rows);
  CAE_CHECK(parts * p.images <= INT32_MAX, "a bank of ", p.rows, " rows is too large for ",
            p.images, " images at a time");
  const int32_t part_k = part_candidates(p.k);
  auto* const distances = static_cast<double*>(p.workspace);
  const NearestJob job{p, static_cast<int32_t>(parts), part_k, distances,
                       reinterpret_cast<int32_t*>(distances + p.images * parts * part_k)};
  if (parts > 0) {
    launch(nearest_parts_kernel, Grid{static_cast<int>(p.images * parts)}, kNearestThreads,
           kNearestShared, stream, job, {p.overlap});
  }
  launch(nearest_kernel, Grid{p.images}, kNearestThreads, kNearestShared, stream, job, {p.overlap});
}

}  // namespace cae::cuda
