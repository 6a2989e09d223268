// SPDX-License-Identifier: Apache-2.0
// predict ENGINE IMAGE.ppm...: what the engine finds in each image.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>

#include "engine.h"
#include "network.h"
#include "preprocess.h"

namespace {

constexpr int kTop = 5, kRuns = 10;

// The probability of each class from the numbers that the engine returns for one image.
std::vector<double> probabilities(std::vector<double> found) {
    if (found.size() == 1) {  // of the second of two classes
        const double second = network::returns_probabilities ? found[0] : 1 / (1 + std::exp(-found[0]));
        return network::classes.size() == 2 ? std::vector{1 - second, second} : std::vector{second};
    }
    if (network::returns_probabilities) return found;
    const double most = *std::max_element(found.begin(), found.end());
    double sum = 0;
    for (double& one : found) sum += one = std::exp(one - most);
    for (double& one : found) one /= sum;
    return found;
}

void print_classes(const std::vector<double>& shares) {
    std::vector<size_t> order(shares.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return shares[a] > shares[b]; });
    order.resize(std::min<size_t>(order.size(), kTop));
    for (const size_t one : order) std::printf("  %6.2f%%  %s\n", 100 * shares[one], network::classes[one]);
}

// The numbers that belong to the first image: the batch may be larger.
std::vector<double> first(const Output& output) {
    const size_t count = output.shape.empty() ? 1 : output.values.size() / std::max<int64_t>(output.shape[0], 1);
    return {output.values.begin(), output.values.begin() + static_cast<std::ptrdiff_t>(count)};
}

void print_numbers(const Output& output) {
    const std::vector<double> values = first(output);
    if (values.empty()) return;
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
    std::printf("  %s:", output.name.c_str());
    for (size_t i = 1; i < output.shape.size(); ++i) std::printf(" %lld", static_cast<long long>(output.shape[i]));
    std::printf("; min %.6g, mean %.6g, max %.6g\n", *least, mean, *most);
}

double median_ms(Engine& engine, std::vector<float>& input, const std::vector<int64_t>& shape) {
    std::vector<double> times;
    for (int i = 0; i < kRuns; ++i) {
        const auto start = std::chrono::steady_clock::now();
        engine.run(input, shape);
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
    return times[kRuns / 2];
}

}  // namespace

int main(int count, char** words) try {
    if (count < 3) {
        std::fprintf(stderr, "usage: %s ENGINE IMAGE.ppm...\n", words[0]);
        return 2;
    }
    Engine engine(words[1], network::threads);
    const Preprocess& preprocess = network::preprocess;
    const std::vector<int64_t> shape{network::batch, preprocess.channels, preprocess.height, preprocess.width};
    std::vector<float> input;
    int code = 0;
    for (int i = 2; i < count; ++i) try {
        const std::vector<float> image = preprocess(read_ppm(words[i]));
        input.clear();
        for (int n = 0; n < network::batch; ++n) input.insert(input.end(), image.begin(), image.end());
        const std::vector<Output> outputs = engine.run(input, shape);
        std::printf("%s\n", words[i]);
        if (network::classes.empty()) {
            for (const Output& output : outputs) print_numbers(output);
        } else {
            print_classes(probabilities(first(outputs[0])));
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        code = 1;
    }
    if (!input.empty()) {
        std::printf("%.2f ms a run (median of %d, %d thread%s, %s); not a benchmark\n", median_ms(engine, input, shape),
                    kRuns, network::threads, network::threads == 1 ? "" : "s", Engine::version().c_str());
    }
    return code;
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
