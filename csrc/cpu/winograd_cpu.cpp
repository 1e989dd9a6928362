// SPDX-License-Identifier: Apache-2.0
// A task transforms a chunk of tiles, multiplies it with the weights and transforms the products
// back, a block of output channels at a time. A block's products stay in the second-level cache of
// its core, the chunk not far from it; the weights stream past. Where there are more threads than
// chunks, several tasks share a chunk's blocks, and each transforms the chunk for itself.
#include <algorithm>

#include "core/ceil_div.h"
#include "cpu/border.h"
#include "cpu/isa_cpu.h"
#include "cpu/load_source.h"
#include "cpu/parallel_cpu.h"
#include "ops/conv_layer.h"

namespace cae::cpu {
namespace {

/// Whether to store an image past the caches: a large one would only push the weights and what is
/// at work out of them. Needs pixels of whole cache lines.
bool goes_past_caches(const float* image, int64_t size, int64_t channels) {
  constexpr int64_t kLarge = 1 << 20;
  constexpr int64_t kLine = AlignedBuffer::kAlignment / static_cast<int64_t>(sizeof(float));
  return size >= kLarge && channels % kLine == 0 &&
         reinterpret_cast<uintptr_t>(image) % AlignedBuffer::kAlignment == 0;
}

constexpr int64_t kMostPatch = 10;  // rows or columns that a tile sees

class WinogradJob {
 public:
  WinogradJob(const ConvLayer& layer, const std::vector<LayerImage>& images, Scratch& scratch,
              int threads)
      : layer_(layer),
        plan_(layer.tiles),
        images_(images),
        scratch_(scratch),
        table_(kernels()),
        chunks_(static_cast<int64_t>(layer.tiles.chunks.size())),
        blocks_(static_cast<int64_t>(layer.tiles.blocks.size())),
        edge_panels_(
            layer.edge.sides.empty()
                ? 0
                : static_cast<int64_t>(layer.edge.sides.front().phases.front().panels.size())) {
    const int64_t units = chunks_ * static_cast<int64_t>(images.size());
    shares_ = best_shares(units, threads);
    chunk_tasks_ = units * shares_;
  }

  int64_t tasks() const {
    return chunk_tasks_ + static_cast<int64_t>(images_.size()) * edge_tasks();
  }

  /// The chunks of all images, then the small tasks of their edges.
  void run(int64_t task, int worker) {
    if (task >= chunk_tasks_) {
      const int64_t edge = task - chunk_tasks_;
      run_edge(images_[static_cast<size_t>(edge / edge_tasks())], edge % edge_tasks(), worker);
      return;
    }
    const int64_t unit = task / shares_;
    const int64_t share = task % shares_;
    const LayerImage& image = images_[static_cast<size_t>(unit / chunks_)];
    const int64_t chunk = unit % chunks_;
    float* inputs = scratch_.worker(worker);
    float* products = inputs + plan_.input_size();
    transform(image, plan_.chunks[static_cast<size_t>(chunk)], share == 0, inputs);
    for (int64_t i = share * blocks_ / shares_; i < (share + 1) * blocks_ / shares_; ++i) {
      multiply(image, chunk, plan_.blocks[static_cast<size_t>(i)], inputs, products);
    }
  }

 private:
  /// Tasks per chunk for which the threads are done soonest.
  int64_t best_shares(int64_t units, int threads) const {
    constexpr double kTransform = 0.1;  // of a chunk's time, done once for each share
    int64_t best = 1;
    double best_time = 0;
    for (int64_t shares = 1; shares <= blocks_; ++shares) {
      const int64_t rounds = ceil_div(units * shares, threads);
      const int64_t blocks = ceil_div(blocks_, shares);
      const double share = static_cast<double>(blocks) / static_cast<double>(blocks_);
      const double time = static_cast<double>(rounds) * (kTransform + share);
      if (shares == 1 || time < best_time) {
        best = shares;
        best_time = time;
      }
    }
    return best;
  }

  int64_t edge_tasks() const {
    return static_cast<int64_t>(layer_.edge.sides.size()) * edge_panels_;
  }

  void transform(const LayerImage& image, const WinogradChunk& chunk, bool keep,
                 float* inputs) const {
    const bool copies = image.stream != nullptr && image.source.residual == nullptr;
    if (plan_.rows_size() > 0 && !copies) {
      transform_rows(image, chunk, keep, inputs);
      return;
    }
    for (int64_t t = 0; t < chunk.tiles; ++t) {
      transform_tile(image, chunk.tile + t, keep, inputs + t * plan_.depth);
    }
  }

  Padding padding() const {
    return plan_.kind == WinogradKind::kUpsample ? Padding::kReplicate : Padding::kReflect;
  }

  /// Whole rows of tiles. Image and residual are read and the stream is written from end to end:
  /// memory serves that faster than pieces of 4 x 4 pixels from each. What a row of tiles sees is
  /// kept.
  void transform_rows(const LayerImage& image, const WinogradChunk& chunk, bool keep,
                      float* inputs) const {
    const bool strided = plan_.kind == WinogradKind::kStride2;
    const int64_t patch = plan_.patch();
    const int64_t step = patch - 2;
    const int64_t row_floats = plan_.width * plan_.channels;
    const int64_t first_row = chunk.tile / plan_.tile_columns * step;
    const int64_t last_row = first_row + chunk.tiles / plan_.tile_columns * step;
    float* kept = inputs + plan_.input_size() + plan_.product_size();
    int64_t loaded = std::max<int64_t>(first_row - 1, 0);
    int64_t columns[kMostPatch];
    int64_t rows[kMostPatch];
    WinogradInputArgs args{};
    args.in = kept;
    args.channels = plan_.channels;
    args.rows = rows;
    args.columns = columns;
    args.products = inputs;
    args.frequency_stride = plan_.input_stride();
    for (int64_t row = first_row; row < last_row; row += step) {
      for (; loaded < std::min(row + step + 1, plan_.height); ++loaded) {
        const bool own = loaded >= first_row && loaded < last_row;
        load_row(image, loaded, keep && own, kept + loaded % patch * row_floats);
      }
      for (int64_t i = 0; i < patch; ++i) {
        // below an image's last row of tiles no output sees what is kept, and any row will do
        const int64_t y = std::max(border_index(row + i - 1, plan_.height, padding()),
                                   std::max<int64_t>(row - 1, 0));
        rows[i] = y % patch * plan_.width;
      }
      for (int64_t column = 0; column < plan_.tile_columns; ++column) {
        for (int64_t i = 0; i < patch; ++i) {
          columns[i] = border_index(column * step + i - 1, plan_.width, padding());
        }
        strided ? table_.winograd_input2(args) : table_.winograd_input3(args);
        args.products += plan_.depth;
      }
    }
  }

  void load_row(const LayerImage& image, int64_t y, bool keep, float* row) const {
    const int64_t offset = y * plan_.width * plan_.channels;
    if (image.source.residual == nullptr) {
      load_source(table_, image.source, offset, plan_.width, plan_.channels, row);
      return;
    }
    ResidualArgs args;
    args.in = image.source.in + offset;
    args.scale = image.source.scale;
    args.shift = image.source.shift;
    args.residual = image.source.residual + offset;
    args.out = row;
    args.stream = keep && image.stream != nullptr ? image.stream + offset : nullptr;
    args.past_caches = goes_past_caches(image.stream, layer_.in_size(), plan_.channels);
    args.pixels = plan_.width;
    args.channels = plan_.channels;
    table_.residual(args);
  }

  void transform_tile(const LayerImage& image, int64_t tile, bool keep, float* inputs) const {
    const bool strided = plan_.kind == WinogradKind::kStride2;
    const int64_t patch = plan_.patch();
    const int64_t step = patch - 2;
    const int64_t row = tile / plan_.tile_columns * step;
    const int64_t column = tile % plan_.tile_columns * step;
    int64_t rows[kMostPatch];
    int64_t columns[kMostPatch];
    for (int64_t i = 0; i < patch; ++i) {
      rows[i] = border_index(row + i - 1, plan_.height, padding()) * plan_.width;
      columns[i] = border_index(column + i - 1, plan_.width, padding());
    }
    WinogradInputArgs args;
    args.in = image.source.in;
    args.scale = image.source.scale;
    args.shift = image.source.shift;
    args.residual = image.source.residual;
    args.stream = keep ? image.stream : nullptr;
    args.stream_rows = plan_.height - row;
    args.stream_columns = plan_.width - column;
    args.past_caches = goes_past_caches(image.stream, layer_.in_size(), plan_.channels);
    args.relu = image.source.relu;
    args.channels = plan_.channels;
    args.rows = rows;
    args.columns = columns;
    args.products = inputs;
    args.frequency_stride = plan_.input_stride();
    strided ? table_.winograd_input2(args) : table_.winograd_input3(args);
  }

  void multiply(const LayerImage& image, int64_t chunk_index, const WinogradBlock& block,
                const float* inputs, float* products) const {
    const WinogradChunk& chunk = plan_.chunks[static_cast<size_t>(chunk_index)];
    StripArgs strip{};
    strip.a_point_stride = plan_.depth;
    strip.segments = 1;
    strip.segment_length = plan_.depth;
    strip.out_point_stride = block.columns;
    strip.points = chunk.tiles;
    const auto count = static_cast<int64_t>(block.products.size());
    for (int64_t i = 0; i < count; ++i) {
      const WinogradProduct& product = block.products[static_cast<size_t>(i)];
      // fetched meanwhile: the next weights, and of the next frequency's input a part as large
      const WinogradProduct& next = block.products[static_cast<size_t>(std::min(i + 1, count - 1))];
      const int64_t next_frequency = std::min(product.frequency + 1, plan_.frequencies - 1);
      strip.next_b = plan_.weights.data() + next.offset;
      strip.next_floats = plan_.depth * next.width;
      strip.next_a = inputs + next_frequency * plan_.input_stride() +
                     product.column / product.width * strip.next_floats;
      strip.a = inputs + product.frequency * plan_.input_stride();
      strip.b = plan_.weights.data() + product.offset;
      strip.out = products + product.frequency * plan_.product_stride(block) + product.column;
      strip.channels = product.width;
      table_.strip(strip);
    }
    float* partials = image.partials == nullptr
                          ? nullptr
                          : image.partials + chunk_index * 2 * plan_.out_channels + block.channel;
    store_tiles(image, chunk, block, products, partials);
  }

  void store_tiles(const LayerImage& image, const WinogradChunk& chunk, const WinogradBlock& block,
                   const float* products, float* partials) const {
    const bool upsample = plan_.kind == WinogradKind::kUpsample;
    const int64_t tile_size = upsample ? 8 : 4;
    WinogradOutputArgs args;
    args.frequency_stride = plan_.product_stride(block);
    args.phase_stride = block.phase_width;
    args.channels = block.channels;
    args.past_caches = goes_past_caches(image.out, layer_.out_size(), plan_.out_channels);
    args.out_pixel_stride = plan_.out_channels;
    args.out_row_stride = plan_.out_width * plan_.out_channels;
    args.mean = partials;
    args.m2 = partials == nullptr ? nullptr : partials + plan_.out_channels;
    if (partials != nullptr) {
      std::fill_n(args.mean, block.channels, 0.0f);
      std::fill_n(args.m2, block.channels, 0.0f);
    }
    int64_t before = 0;
    for (int64_t t = 0; t < chunk.tiles; ++t) {
      const int64_t tile_row = (chunk.tile + t) / plan_.tile_columns;
      const int64_t tile_column = (chunk.tile + t) % plan_.tile_columns;
      const WinogradPlan::Range rows = plan_.output_rows(tile_row);
      const WinogradPlan::Range columns = plan_.output_columns(tile_column);
      const int64_t pixels = (rows.end - rows.begin) * (columns.end - columns.begin);
      args.products = products + t * block.columns;
      args.out = image.out + block.channel +
                 (tile_row * plan_.out_width + tile_column) * tile_size * plan_.out_channels;
      args.row_begin = rows.begin;
      args.row_end = rows.end;
      args.column_begin = columns.begin;
      args.column_end = columns.end;
      args.inverse_pixels = 1.0f / static_cast<float>(pixels);
      args.mean_weight = static_cast<float>(pixels) / static_cast<float>(pixels + before);
      args.m2_weight = static_cast<float>(before) * args.mean_weight;
      before += pixels;
      switch (plan_.kind) {
        case WinogradKind::kConv3x3:
          table_.winograd_output3(args);
          break;
        case WinogradKind::kStride2:
          table_.winograd_output2(args);
          break;
        case WinogradKind::kUpsample:
          table_.winograd_upsample(args);
          break;
      }
    }
    table_.fence();
  }

  void run_edge(const LayerImage& image, int64_t task, int worker) {
    const int64_t side_index = task / edge_panels_;
    const EdgeSide& side = layer_.edge.sides[static_cast<size_t>(side_index)];
    float* strip_image = scratch_.worker(worker);
    load_strip(image.source, side, strip_image);
    auto chunk = static_cast<int64_t>(plan_.chunks.size());
    for (int64_t i = 0; i < side_index; ++i) {
      chunk += static_cast<int64_t>(layer_.edge.sides[static_cast<size_t>(i)].phases.size());
    }
    for (const ConvPhase& phase : side.phases) {
      const ConvPanel& panel = phase.panels[static_cast<size_t>(task % edge_panels_)];
      StripArgs strip{};
      strip.a = strip_image + phase.in_offset;
      strip.a_point_stride = phase.in_point_stride;
      strip.a_segment_stride = phase.in_segment_stride;
      strip.segments = phase.segments;
      strip.segment_length = phase.segment_length;
      strip.b = phase.weights.data() + panel.offset;
      strip.out = image.out + phase.out_offset + panel.channel;
      strip.out_point_stride = phase.out_point_stride;
      strip.points = phase.points;
      strip.channels = panel.channels;
      table_.strip(strip);
      if (image.partials != nullptr) {
        float* partials = image.partials + chunk * 2 * plan_.out_channels + panel.channel;
        table_.moments({strip.out, 0, phase.out_point_stride, 1, phase.points, panel.channels,
                        partials, partials + plan_.out_channels});
      }
      ++chunk;
    }
  }

  /// The values of a side's strip of the image, whose border repeats its outermost pixels.
  void load_strip(const ConvSource& source, const EdgeSide& side, float* strip) const {
    for (int64_t y = 0; y < side.rows; ++y) {
      for (int64_t x = 0; x < side.columns; ++x) {
        const int64_t row = border_index(side.row + y, plan_.height, Padding::kReplicate);
        const int64_t column = border_index(side.column + x, plan_.width, Padding::kReplicate);
        const int64_t offset = (row * plan_.width + column) * plan_.channels;
        load_source(table_, source, offset, 1, plan_.channels,
                    strip + (y * side.columns + x) * plan_.channels);
      }
    }
  }

  const ConvLayer& layer_;
  const WinogradPlan& plan_;
  const std::vector<LayerImage>& images_;
  Scratch& scratch_;
  const KernelTable& table_;
  int64_t chunks_;
  int64_t blocks_;
  int64_t shares_ = 1;  // tasks of a chunk
  int64_t chunk_tasks_ = 0;
  int64_t edge_panels_;
};

}  // namespace

void run_winograd(const ConvLayer& layer, const std::vector<LayerImage>& images, Scratch& scratch) {
  if (images.empty()) {
    return;
  }
  const PoolTurn turn;
  scratch.reserve(layer.scratch_size(), turn.threads());
  WinogradJob job(layer, images, scratch, turn.threads());
  parallel_for(job.tasks(), [&](int64_t task, int worker) { job.run(task, worker); });
}

}  // namespace cae::cpu
