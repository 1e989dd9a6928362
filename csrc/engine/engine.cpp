// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <utility>

#include "ops/path_codes.h"

namespace cae {

Engine::Engine(const NetworkConfig& config, const WeightMap& weights, int64_t max_batch,
               Arithmetic arithmetic)
    : network_(build_network(config, weights, arithmetic)),
      workspace_(make_workspace(network_, max_batch)) {}

void Engine::check_images(const std::vector<int64_t>& shape) const {
  const int64_t size = config().image_size;
  check_shape(shape, "images", {"N", config().in_channels, size, size});
}

void Engine::check_individual(const std::vector<int64_t>& shape) const {
  const int64_t size = config().code_size();
  check_shape(shape, "individual", {"N", config().code_channels(), size, size});
}

DecodeSession::DecodeSession(std::shared_ptr<Engine> engine,
                             const TensorView<const float>& individual,
                             const TensorView<const float>& vertices, int64_t grid)
    : engine_(std::move(engine)), vertices_shape_(vertices.shape), grid_(grid) {
  engine_->check_individual(individual.shape);
  check_shape(vertices.shape, "vertices", {individual.dim(0), "V", engine_->config().code_dim});
  CAE_CHECK(vertices.dim(1) >= 1, "vertices must hold at least one vertex per path, got ",
            shape_string(vertices.shape));
  CAE_CHECK(grid >= 1, "grid must be at least 1, got ", grid);
  vertices_.assign(vertices.data, vertices.data + vertices.numel());
  images_ = engine_->share(individual);
}

void DecodeSession::decode(const TensorView<const int32_t>& image_index,
                           const TensorView<const int32_t>& step, const TensorView<float>& images) {
  check_shape(image_index.shape, "image_index", {"M"});
  const int64_t count = image_index.dim(0);
  const int64_t code_dim = engine_->config().code_dim;
  std::vector<float> codes(static_cast<size_t>(count * code_dim));
  path_codes({vertices_.data(), vertices_shape_}, image_index, step, grid_,
             {codes.data(), {count, code_dim}});
  std::vector<const SharedImage*> points;
  for (int64_t m = 0; m < count; ++m) {
    points.push_back(&images_[static_cast<size_t>(image_index.data[m])]);
  }
  engine_->decode_points(points, codes.data(), images.data);
}

}  // namespace cae
