// SPDX-License-Identifier: Apache-2.0
// ONNX Runtime by its C API, whose first version every release since 1.0 has.
#include <onnxruntime_c_api.h>

#include <filesystem>
#include <stdexcept>

#include "engine.h"

namespace {

constexpr uint32_t kVersion = 1;  // of the API: all that is called here has been in it from the beginning
const OrtApi* const ort = OrtGetApiBase()->GetApi(kVersion);

void check(OrtStatus* status) {
    if (status == nullptr) return;
    const std::string message = ort->GetErrorMessage(status);
    ort->ReleaseStatus(status);
    throw std::runtime_error(message);
}

// An object of the runtime's, released at the end of the scope.
template <typename T>
class Owned {
public:
    explicit Owned(void (*release)(T*)) : release(release) {}
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    ~Owned() {
        if (held != nullptr) release(held);
    }
    T** into() { return &held; }
    operator T*() const { return held; }

private:
    void (*release)(T*);
    T* held = nullptr;
};

std::vector<std::string> names(OrtSession* session, bool inputs) {
    OrtAllocator* allocator = nullptr;
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    size_t count = 0;
    check(inputs ? ort->SessionGetInputCount(session, &count) : ort->SessionGetOutputCount(session, &count));
    std::vector<std::string> found;
    for (size_t i = 0; i < count; ++i) {
        char* name = nullptr;
        check(inputs ? ort->SessionGetInputName(session, i, allocator, &name)
                     : ort->SessionGetOutputName(session, i, allocator, &name));
        found.emplace_back(name);
        check(ort->AllocatorFree(allocator, name));
    }
    return found;
}

// The outputs of one run.
struct Values : std::vector<OrtValue*> {
    using std::vector<OrtValue*>::vector;
    ~Values() {
        for (OrtValue* value : *this) ort->ReleaseValue(value);
    }
};

Output read(const std::string& name, OrtValue* value) {
    Owned<OrtTensorTypeAndShapeInfo> info(ort->ReleaseTensorTypeAndShapeInfo);
    check(ort->GetTensorTypeAndShape(value, info.into()));
    ONNXTensorElementDataType type{};
    check(ort->GetTensorElementType(info, &type));
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw std::runtime_error("the output " + name + " is not float");
    size_t axes = 0, count = 0;
    check(ort->GetDimensionsCount(info, &axes));
    check(ort->GetTensorShapeElementCount(info, &count));
    Output output{name, std::vector<int64_t>(axes), {}};
    check(ort->GetDimensions(info, output.shape.data(), axes));
    void* data = nullptr;
    check(ort->GetTensorMutableData(value, &data));
    output.values.assign(static_cast<float*>(data), static_cast<float*>(data) + count);
    return output;
}

}  // namespace

struct Engine::State {
    Owned<OrtEnv> environment{ort->ReleaseEnv};
    Owned<OrtSessionOptions> options{ort->ReleaseSessionOptions};
    Owned<OrtSession> session{ort->ReleaseSession};
    Owned<OrtMemoryInfo> memory{ort->ReleaseMemoryInfo};
    std::vector<std::string> inputs, outputs;
};

Engine::Engine(const std::string& file, int threads) : state(std::make_unique<State>()) {
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "predict", state->environment.into()));
    check(ort->CreateSessionOptions(state->options.into()));
    check(ort->SetIntraOpNumThreads(state->options, threads));
    check(ort->SetInterOpNumThreads(state->options, 1));
    check(ort->SetSessionGraphOptimizationLevel(state->options, ORT_ENABLE_ALL));
    const std::filesystem::path path(file);  // of wide characters on Windows
    check(ort->CreateSession(state->environment, path.c_str(), state->options, state->session.into()));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, state->memory.into()));
    state->inputs = names(state->session, true);
    state->outputs = names(state->session, false);
}

Engine::~Engine() = default;

std::vector<Output> Engine::run(std::vector<float>& input, const std::vector<int64_t>& shape) {
    Owned<OrtValue> tensor(ort->ReleaseValue);
    check(ort->CreateTensorWithDataAsOrtValue(state->memory, input.data(), input.size() * sizeof(float), shape.data(),
                                              shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, tensor.into()));
    std::vector<const char*> wanted;
    for (const std::string& name : state->outputs) wanted.push_back(name.c_str());
    const char* const taken = state->inputs.at(0).c_str();
    const OrtValue* const given = tensor;
    Values values(wanted.size(), nullptr);
    check(ort->Run(state->session, nullptr, &taken, &given, 1, wanted.data(), wanted.size(), values.data()));
    std::vector<Output> outputs;
    for (size_t i = 0; i < values.size(); ++i) outputs.push_back(read(wanted[i], values[i]));
    return outputs;
}

std::string Engine::version() { return std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString(); }
