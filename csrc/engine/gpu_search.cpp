// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_search.h"

#include <algorithm>

#include "cuda/modulation_cuda.h"
#include "cuda/nearest_cuda.h"
#include "cuda/output_conv_cuda.h"
#include "cuda/saliency_cuda.h"
#include "search/flip_plan.h"
#include "search/flip_search_host.h"

namespace cae::gpu {
namespace {

constexpr int64_t kMostRows = 65535;  // that a grid counts

// Rows of which the modulation is made once, for the whole grid, instead of in every round. 16 rows
// share a read of the weights (modulation_cuda.cu): 64 rows read them four times, about what the
// rounds of a search do; they spare four launches a round. A fine grid would cost more than it
// saves.
constexpr int64_t kMostGridRows = 64;

}  // namespace

DeviceBank::DeviceBank(int device, const float* bank_codes, const int32_t* bank_classes,
                       int64_t count, int64_t dim)
    : rows(count), code_dim(dim) {
  const DeviceGuard guard(device);
  const auto code_bytes = static_cast<size_t>(rows * code_dim) * sizeof(float);
  const auto class_bytes = static_cast<size_t>(rows) * sizeof(int32_t);
  codes = DeviceBuffer(device, code_bytes);
  classes = DeviceBuffer(device, class_bytes);
  copy_to_device(codes.data(), bank_codes, code_bytes, nullptr);
  copy_to_device(classes.data(), bank_classes, class_bytes, nullptr);
  synchronize(nullptr);
  codes.seal();
  classes.seal();
}

GpuSearch::GpuSearch(std::shared_ptr<GpuEngine> engine, const SearchPlan& plan,
                     std::shared_ptr<const DeviceBank> bank)
    : engine_(std::move(engine)), plan_(plan), bank_(std::move(bank)) {
  search::check_rules(plan_.rules);
  CAE_CHECK(plan_.exemplars >= 1, "exemplars must be at least 1, got ", plan_.exemplars);
  CAE_CHECK(plan_.images >= 1 && plan_.images <= 65535, "images must be in 1..65535, got ",
            plan_.images);
  CAE_CHECK(!plan_.elsewhere || plan_.classifier.channels == 0,
            "points that are decoded elsewhere have no form for the classifier");
  CAE_CHECK(plan_.vertices >= 1 && plan_.vertices <= cuda::kMaxPathVertices,
            "vertices must be in 1..", cuda::kMaxPathVertices, ", got ", plan_.vertices);
  const DeviceGuard guard(engine_->device());
  const search::FlipPlan flips = search::plan_flips(plan_.rules);
  rounds_ = flips.rounds;
  flips_.rules = plan_.rules;
  flips_.images = plan_.images;
  flips_.slots = flips.slots;
  flips_.packed = plan_.packed;
  flips_.max_points = flips.points;
  flips_.overlap = engine_->network().overlap;
  Bump counter(nullptr);
  plan_memory(counter);
  memory_ = DeviceBuffer(engine_->device(), counter.used());
  fill_zero(memory_.data(), memory_.bytes(), nullptr);
  synchronize(nullptr);
  Bump bump(memory_.data());
  plan_memory(bump);
}

void GpuSearch::plan_memory(Bump& bump) {
  const NetworkConfig& config = engine_->config();
  const int64_t n = plan_.images;
  const int64_t points = n * flips_.slots;
  const int64_t image = config.image_numel();
  images_ = bump.take<float>(n * image);
  points_ = bump.take<float>(points * image);
  if (plan_.classifier.channels > 0) {
    classifier_input_ = bump.take<char>(points * classifier_bytes());
  }
  counterfactual_ = bump.take<float>(n * image);
  reconstruction_ = bump.take<float>(n * image);
  difference_ = bump.take<float>(n * image);
  saliency_ = bump.take<float>(n * config.image_size * config.image_size);
  ends_ = bump.take<float>(n * config.code_dim);
  if (plan_.elsewhere) {
    point_codes_ = bump.take<float>(points * config.code_dim);
  } else {
    plan_networks(bump);
  }
  plan_settings(bump);
  plan_report(bump);
  if (bank_ != nullptr) {
    nearest_workspace_ = bump.take<char>(static_cast<int64_t>(cuda::nearest_workspace_bytes(
        plan_.images, static_cast<int32_t>(bank_->rows), plan_.exemplars)));
  }
  saliency_workspace_ = bump.take<float>(
      n * cuda::saliency_parts(static_cast<int32_t>(config.image_size * config.image_size)));
  finite_ = bump.take<int32_t>(points * tiles_);
  flips_.first_slot = bump.take<int32_t>(n);
  flips_.image_index = bump.take<int32_t>(points);
  flips_.step = bump.take<int32_t>(points);
  flips_.active = bump.take<int32_t>(points);
  flips_.remaining = bump.take<int32_t>(1);
  flips_.keep_slot = bump.take<int32_t>(n);
  flips_.start_slot = bump.take<int32_t>(n);
}

/// What encoding and decoding here need.
void GpuSearch::plan_networks(Bump& bump) {
  const GpuConv& first = engine_->network().decoder_blocks.front();
  const int64_t n = plan_.images;
  const int64_t points = n * flips_.slots;
  stream_ = bump.take<uint16_t>(n * first.out_numel());
  shared_.stream = stream_;
  shared_.first = take_output(bump, first, n);
  tiles_ = cuda::output_tiles(static_cast<int32_t>(engine_->config().image_size));
  const int64_t grid_rows = n * (plan_.rules.grid + 1);
  whole_grid_ = grid_rows <= kMostGridRows;
  flips_.grid_row = whole_grid_ ? bump.take<int32_t>(points) : nullptr;
  modulation_ = take_modulation(bump, engine_->network(), whole_grid_ ? grid_rows : points);
}

void GpuSearch::plan_settings(Bump& bump) {
  const int64_t n = plan_.images;
  settings_at_ = bump.used();
  wanted_ = bump.take<int32_t>(n);
  left_out_ = bump.take<int32_t>(n);
  reachable_ = bump.take<int32_t>(plan_.rules.num_classes);
  paths_at_ = bump.used();
  vertices_ = bump.take<float>(n * plan_.vertices * engine_->config().code_dim);
  settings_end_ = bump.used();
}

void GpuSearch::plan_report(Bump& bump) {
  const int64_t n = plan_.images;
  const int64_t history = n * flips_.max_points;
  const int64_t classes = plan_.rules.num_classes;
  report_at_ = bump.used();
  flips_.states = bump.take<search::FlipState>(n);
  flips_.path_count = bump.take<int32_t>(n);
  flips_.path_step = bump.take<int32_t>(history);
  flips_.path_logits = bump.take<float>(history * classes);
  flips_.logits_counterfactual = bump.take<float>(n * classes);
  codes_ = bump.take<float>(n * engine_->config().code_dim);
  exemplars_ = bump.take<int32_t>(n * plan_.exemplars);
  if (bank_ != nullptr) {
    missing_ = bump.take<int32_t>(n);
  }
  report_end_ = bump.used();
}

int64_t GpuSearch::classifier_bytes() const {
  const int64_t size = engine_->config().image_size;
  return plan_.classifier.channels * size * size * (plan_.classifier.half ? 2 : 4);
}

void GpuSearch::begin(const float* logits, bool given, Stream queue) {
  const DeviceGuard guard(engine_->device());
  CAE_CHECK(given || (bank_ != nullptr && plan_.vertices == 2),
            "without a bank, or for paths of other than 2 vertices, paths must be given");
  const NetworkConfig& config = engine_->config();
  if (!plan_.elsewhere) {
    engine_->encode(images_, plan_.images, stream_, nullptr, codes_, queue);
  }
  cuda::FlipBeginParams begin;
  begin.buffers = flips_;
  begin.logits_source = logits;
  begin.class_codes = codes_;
  begin.code_dim = static_cast<int32_t>(config.code_dim);
  begin.wanted = wanted_;
  begin.reachable = reachable_;
  begin.left_out = left_out_;
  cuda::flip_begin(begin, queue);
  if (!given) {
    cuda::NearestParams nearest;
    nearest.images = plan_.images;
    nearest.rows = static_cast<int32_t>(bank_->rows);
    nearest.code_dim = static_cast<int32_t>(config.code_dim);
    nearest.k = plan_.exemplars;
    nearest.bank_codes = bank_->codes.as<float>();
    nearest.bank_class = bank_->classes.as<int32_t>();
    nearest.codes = codes_;
    nearest.states = flips_.states;
    nearest.nearest = exemplars_;
    nearest.reach = plan_.reach;
    nearest.ends = ends_;
    nearest.missing = missing_;
    nearest.workspace = nearest_workspace_;
    nearest.overlap = flips_.overlap;
    cuda::nearest_codes(nearest, queue);
  }
  join_paths(given, queue);
  if (!plan_.elsewhere) {
    engine_->share(stream_, plan_.images, shared_.first, queue);
  }
  if (whole_grid_) {
    make_table(int64_t{plan_.images} * (plan_.rules.grid + 1), nullptr, nullptr, queue);
  }
  cuda::flip_points(in_round(0), queue);
}

/// Each path begins at the image's own code and, where a bank was asked, ends at its exemplars'.
void GpuSearch::join_paths(bool given, Stream queue) {
  const int64_t dim = engine_->config().code_dim;
  const int64_t row = plan_.vertices * dim;
  copy_rows_on_device(vertices_, row, codes_, dim, dim, plan_.images, queue);
  if (!given) {
    copy_rows_on_device(vertices_ + dim, row, ends_, dim, dim, plan_.images, queue);
  }
}

void GpuSearch::write_codes(int64_t rows, const int32_t* image_index, const int32_t* step,
                            float* codes, Stream queue) {
  cuda::PathCodesParams params;
  params.rows = static_cast<int32_t>(rows);
  params.vertex_count = plan_.vertices;
  params.code_dim = static_cast<int32_t>(engine_->config().code_dim);
  params.grid = plan_.rules.grid;
  params.vertices = vertices_;
  params.image_index = image_index;
  params.step = step;
  params.codes = codes;
  params.overlap = flips_.overlap;
  cuda::path_codes(params, queue);
}

void GpuSearch::make_table(int64_t rows, const int32_t* image_index, const int32_t* step,
                           Stream queue) {
  write_codes(rows, image_index, step, modulation_.codes, queue);
  engine_->modulate(modulation_.codes, static_cast<int32_t>(rows), modulation_, queue);
}

int32_t GpuSearch::round_points(int32_t round) const {
  CAE_CHECK(round >= 0 && round < rounds_, "round must be in 0..", rounds_ - 1, ", got ", round);
  return plan_.images * search::round_slots(plan_.rules, round);
}

cuda::FlipBuffers GpuSearch::in_round(int32_t round) const {
  cuda::FlipBuffers flips = flips_;
  flips.round = round;
  flips.slots = search::round_slots(plan_.rules, round);
  return flips;
}

void GpuSearch::choose_count(int32_t round, int32_t count) {
  const int32_t all = round_points(round);
  CAE_CHECK(count == all || (plan_.packed && count >= 1 && count < all), "points of round ", round,
            " must be ", plan_.packed ? "at most " : "", all, ", got ", count);
  decoded_ = count;
}

void GpuSearch::place(int32_t round, int32_t count, Stream queue) {
  CAE_CHECK(plan_.elsewhere, "the networks are here: decode() the round");
  choose_count(round, count);
  const DeviceGuard guard(engine_->device());
  const int64_t dim = engine_->config().code_dim;
  for (int64_t first = 0; first < count; first += kMostRows) {
    write_codes(std::min(kMostRows, count - first), flips_.image_index + first, flips_.step + first,
                point_codes_ + first * dim, queue);
  }
}

void GpuSearch::decode(int32_t round, int32_t count, Stream queue) {
  CAE_CHECK(!plan_.elsewhere, "the networks are elsewhere: place() the round's points");
  choose_count(round, count);
  const DeviceGuard guard(engine_->device());
  const NetworkConfig& config = engine_->config();
  if (!whole_grid_) {
    make_table(count, flips_.image_index, flips_.step, queue);
  }
  for (int64_t first = 0; first < count; first += engine_->max_batch()) {
    const auto batch = static_cast<int32_t>(std::min(engine_->max_batch(), count - first));
    PathPoints where;
    where.count = batch;
    where.image_index = flips_.image_index + first;
    where.active = flips_.active + first;
    if (whole_grid_) {
      where.table = modulation_.table;
      where.mod_row = flips_.grid_row + first;
    } else {
      where.table = modulation_.table + first * engine_->network().modulation_row();
    }
    where.finite = finite_ + first * tiles_;
    if (classifier_input_ != nullptr) {
      where.classifier = plan_.classifier;
      where.classifier.values = classifier_input_ + first * classifier_bytes();
    }
    engine_->decode(shared_, where, points_ + first * config.image_numel(), queue);
  }
}

void GpuSearch::step(int32_t round, const void* logits, bool half, Stream queue) {
  const DeviceGuard guard(engine_->device());
  const NetworkConfig& config = engine_->config();
  cuda::FlipStepParams step;
  step.buffers = in_round(round);
  step.logits = logits;
  step.half_logits = half;
  step.finite = finite_;
  step.tiles = tiles_;
  cuda::flip_step(step, queue);
  cuda::FlipCommitParams commit;
  commit.buffers = step.buffers;
  commit.values = config.image_numel();
  commit.decoded = points_;
  commit.inputs = images_;
  commit.counterfactual = counterfactual_;
  commit.reconstruction = reconstruction_;
  cuda::flip_commit(commit, queue);
  cuda::flip_points(in_round(round + 1), queue);
}

void GpuSearch::finish(Stream queue) {
  const DeviceGuard guard(engine_->device());
  const NetworkConfig& config = engine_->config();
  cuda::SaliencyParams params;
  params.images = plan_.images;
  params.channels = static_cast<int32_t>(config.in_channels);
  params.pixels = static_cast<int32_t>(config.image_size * config.image_size);
  params.against_input = plan_.against_image;
  params.states = flips_.states;
  params.counterfactual = counterfactual_;
  params.reconstruction = reconstruction_;
  params.inputs = images_;
  params.difference = difference_;
  params.saliency = saliency_;
  params.workspace = saliency_workspace_;
  params.overlap = flips_.overlap;
  cuda::difference_saliency(params, queue);
}

}  // namespace cae::gpu
