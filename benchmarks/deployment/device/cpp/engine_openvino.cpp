// SPDX-License-Identifier: Apache-2.0
#include <openvino/openvino.hpp>

#include "engine.h"

struct Engine::State {
    ov::CompiledModel model;
    ov::InferRequest request;
};

Engine::Engine(const std::string& file, int threads) : state(std::make_unique<State>()) {
    state->model = ov::Core().compile_model(
        file, "CPU", ov::inference_num_threads(threads), ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::num_streams(1), ov::hint::inference_precision(ov::element::f32), ov::hint::enable_cpu_pinning(false));
    state->request = state->model.create_infer_request();
}

Engine::~Engine() = default;

std::vector<Output> Engine::run(std::vector<float>& input, const std::vector<int64_t>& shape) {
    state->request.set_input_tensor({ov::element::f32, ov::Shape(shape.begin(), shape.end()), input.data()});
    state->request.infer();
    std::vector<Output> outputs;
    for (const auto& port : state->model.outputs()) {
        const ov::Tensor tensor = state->request.get_tensor(port);
        const auto* values = tensor.data<float>();
        const ov::Shape found = tensor.get_shape();
        outputs.push_back({port.get_any_name(), {found.begin(), found.end()}, {values, values + tensor.get_size()}});
    }
    return outputs;
}

std::string Engine::version() { return std::string("OpenVINO ") + ov::get_openvino_version().buildNumber; }
