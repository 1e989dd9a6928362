// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_workspace.h"

#include "cuda/output_conv_cuda.h"

namespace cae::gpu {

LayerOutput take_output(Bump& bump, const GpuConv& conv, int64_t rows) {
  LayerOutput out;
  const LayerMoments& moments = conv.moments;
  out.values = bump.take<uint16_t>(rows * conv.out_numel());
  out.parts = bump.take<float>(rows * moments.parts * moments.floats_per_part);
  if (moments.merged()) {
    out.merged = bump.take<float>(rows * moments.norm.parts * moments.floats_per_part);
  }
  return out;
}

ModulationBuffers take_modulation(Bump& bump, const GpuNetwork& network, int64_t rows) {
  ModulationBuffers buffers;
  buffers.codes = bump.take<float>(rows * network.config.code_dim);
  for (size_t i = 0; i < 2; ++i) {
    buffers.hidden[i] = bump.take<float>(rows * network.modulation[i].out);
  }
  buffers.table = bump.take<float>(rows * network.modulation_row());
  return buffers;
}

GpuWorkspace::GpuWorkspace(const GpuNetwork& network, int64_t batch) : rows(batch) {
  Bump counter(nullptr);
  plan(network, counter);
  memory_ = DeviceBuffer(network.device, counter.used());
  // Rows of points that are left out are read by layers whose results for them nobody reads.
  const DeviceGuard guard(network.device);
  fill_zero(memory_.data(), memory_.bytes(), nullptr);
  synchronize(nullptr);
  Bump bump(memory_.data());
  plan(network, bump);
}

void GpuWorkspace::plan(const GpuNetwork& network, Bump& bump) {
  encode.class_convs.clear();
  for (const GpuConv& conv : network.class_convs) {
    encode.class_convs.push_back(take_output(bump, conv, rows));
  }
  encode.individual_convs.clear();
  for (const GpuConv& conv : network.individual_convs) {
    encode.individual_convs.push_back(take_output(bump, conv, rows));
  }
  const GpuConv& block = network.individual_blocks.front();
  const int64_t stream_numel = block.out_numel();
  encode.hidden = take_output(bump, block, rows);
  encode.residual = take_output(bump, block, rows);

  const NetworkConfig& config = network.config;
  decode.modulation = take_modulation(bump, network, rows);
  for (int i = 0; i < 2; ++i) {
    const GpuConv& up = network.upsamples[static_cast<size_t>(i)];
    encode.streams[i] = bump.take<uint16_t>(rows * stream_numel);
    decode.streams[i] = bump.take<uint16_t>(rows * stream_numel);
    decode.upsamples[i] = take_output(bump, up, rows);
    decode.ring_rows[i] = bump.take<float>(rows * 4 * up.params.out_width * up.params.out_channels);
    decode.ring_columns[i] =
        bump.take<float>(rows * 4 * up.params.out_height * up.params.out_channels);
  }
  decode.first = take_output(bump, network.decoder_blocks.front(), rows);
  decode.second = take_output(bump, network.decoder_blocks.front(), rows);
  decode.image_index = bump.take<int32_t>(rows);
  decode.step = bump.take<int32_t>(rows);
  decode.finite =
      bump.take<int32_t>(rows * cuda::output_tiles(static_cast<int32_t>(config.image_size)));
  stream = bump.take<uint16_t>(rows * stream_numel);
  shared = take_output(bump, network.decoder_blocks.front(), rows);
}

}  // namespace cae::gpu
