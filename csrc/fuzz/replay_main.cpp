// SPDX-License-Identifier: Apache-2.0
// Runs a target without libFuzzer, for compilers that have none: every file of the folders given,
// then random inputs from a seed, which is the same on every machine.
//
//   fuzz_<target> [--runs=N] [--seconds=S] [folder or file]...
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz_input.h"

namespace {

using Input = std::vector<uint8_t>;

constexpr size_t kLargestInput = 512;

/// Number of an argument "--name=12"; `value` stays where it is another argument.
bool read_option(const std::string& argument, const std::string& name, int64_t& value) {
  const std::string start = "--" + name + "=";
  if (argument.compare(0, start.size(), start) != 0) {
    return false;
  }
  value = std::strtoll(argument.c_str() + start.size(), nullptr, 10);
  return true;
}

Input read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<Input> read_corpus(const std::vector<std::string>& paths) {
  std::vector<std::filesystem::path> files;
  for (const std::string& path : paths) {
    if (!std::filesystem::is_directory(path)) {
      files.emplace_back(path);
      continue;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) {
        files.push_back(entry.path());
      }
    }
  }
  std::sort(files.begin(), files.end());
  std::vector<Input> inputs;
  inputs.reserve(files.size());
  for (const std::filesystem::path& file : files) {
    inputs.push_back(read_file(file));
  }
  return inputs;
}

void run(const Input& input) { LLVMFuzzerTestOneInput(input.data(), input.size()); }

/// New bytes, or an input of the corpus with some changed; lengths of every magnitude.
Input random_input(std::mt19937_64& generator, const std::vector<Input>& corpus) {
  Input input;
  if (!corpus.empty() && generator() % 2 == 0) {
    input = corpus[generator() % corpus.size()];
  } else {
    input.resize(generator() % (size_t{1} << (1 + generator() % 9)));
    std::generate(input.begin(), input.end(),
                  [&generator] { return static_cast<uint8_t>(generator()); });
    if (generator() % 2 == 0) {  // small numbers are what sizes and classes are made of
      for (uint8_t& byte : input) {
        byte = static_cast<uint8_t>(byte % 16);
      }
    }
  }
  input.resize(std::min(input.size(), kLargestInput));
  const size_t changes = input.empty() ? 0 : generator() % 8;
  for (size_t i = 0; i < changes; ++i) {
    input[generator() % input.size()] = static_cast<uint8_t>(generator());
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  int64_t runs = 10000;
  int64_t seconds = 600;
  std::vector<std::string> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (!read_option(argument, "runs", runs) && !read_option(argument, "seconds", seconds)) {
      paths.push_back(argument);
    }
  }
  const std::vector<Input> corpus = read_corpus(paths);
  for (const Input& input : corpus) {
    run(input);
  }
  std::mt19937_64 generator(20240607);  // NOLINT(bugprone-random-generator-seed): meant to repeat
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  int64_t done = 0;
  while (done < runs && std::chrono::steady_clock::now() < end) {
    run(random_input(generator, corpus));
    ++done;
  }
  std::printf("%s: %zu stored and %lld random inputs\n", argv[0], corpus.size(),
              static_cast<long long>(done));
  return 0;
}
