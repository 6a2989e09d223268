// SPDX-License-Identifier: Apache-2.0
// An engine file opened by its runtime: engine.cpp is for ONNX Runtime or for OpenVINO.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct Output {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
};

class Engine {
public:
    Engine(const std::string& file, int threads);  // throws std::runtime_error
    ~Engine();

    // All outputs for an input of this shape.
    std::vector<Output> run(std::vector<float>& input, const std::vector<int64_t>& shape);

    static std::string version();

private:
    struct State;
    std::unique_ptr<State> state;
};
