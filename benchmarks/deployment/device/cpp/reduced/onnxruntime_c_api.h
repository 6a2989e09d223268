// SPDX-License-Identifier: Apache-2.0
// The part of ONNX Runtime's C API that engine.cpp calls, for a machine that has the library without its headers: the
// Python package is such a one. CMakeLists.txt takes this file only where it finds no onnxruntime_c_api.h.
//
// OrtApi is a table of functions. Its first 102 entries are version 1 of the API: releases only append to the table, so
// an entry keeps its place (ONNX Runtime checks that itself when it is compiled). What is not called here is skipped.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define ORT_API_CALL __stdcall
typedef wchar_t ORTCHAR_T;
#else
#define ORT_API_CALL
typedef char ORTCHAR_T;
#endif

typedef struct OrtAllocator OrtAllocator;
typedef struct OrtEnv OrtEnv;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtStatus OrtStatus;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtValue OrtValue;

typedef enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 } OrtLoggingLevel;
typedef enum GraphOptimizationLevel { ORT_ENABLE_ALL = 99 } GraphOptimizationLevel;
typedef enum OrtAllocatorType { OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum OrtMemType { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum ONNXTensorElementDataType { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1 } ONNXTensorElementDataType;

#define FUNCTION(RESULT, NAME, ...) RESULT(ORT_API_CALL* NAME)(__VA_ARGS__)
#define SKIPPED(FIRST, LAST) void* skipped_##FIRST[LAST - FIRST + 1]

typedef struct OrtApi {
    SKIPPED(0, 1);
    FUNCTION(const char*, GetErrorMessage, const OrtStatus*);
    FUNCTION(OrtStatus*, CreateEnv, OrtLoggingLevel, const char* name, OrtEnv**);
    SKIPPED(4, 6);
    FUNCTION(OrtStatus*, CreateSession, const OrtEnv*, const ORTCHAR_T* path, const OrtSessionOptions*, OrtSession**);
    SKIPPED(8, 8);
    FUNCTION(OrtStatus*, Run, OrtSession*, const OrtRunOptions*, const char* const* input_names,
             const OrtValue* const* inputs, size_t, const char* const* output_names, size_t, OrtValue** outputs);
    FUNCTION(OrtStatus*, CreateSessionOptions, OrtSessionOptions**);
    SKIPPED(11, 22);
    FUNCTION(OrtStatus*, SetSessionGraphOptimizationLevel, OrtSessionOptions*, GraphOptimizationLevel);
    FUNCTION(OrtStatus*, SetIntraOpNumThreads, OrtSessionOptions*, int);
    FUNCTION(OrtStatus*, SetInterOpNumThreads, OrtSessionOptions*, int);
    SKIPPED(26, 29);
    FUNCTION(OrtStatus*, SessionGetInputCount, const OrtSession*, size_t*);
    FUNCTION(OrtStatus*, SessionGetOutputCount, const OrtSession*, size_t*);
    SKIPPED(32, 35);
    FUNCTION(OrtStatus*, SessionGetInputName, const OrtSession*, size_t, OrtAllocator*, char**);
    FUNCTION(OrtStatus*, SessionGetOutputName, const OrtSession*, size_t, OrtAllocator*, char**);
    SKIPPED(38, 48);
    FUNCTION(OrtStatus*, CreateTensorWithDataAsOrtValue, const OrtMemoryInfo*, void* data, size_t bytes,
             const int64_t* shape, size_t axes, ONNXTensorElementDataType, OrtValue**);
    SKIPPED(50, 50);
    FUNCTION(OrtStatus*, GetTensorMutableData, OrtValue*, void**);
    SKIPPED(52, 59);
    FUNCTION(OrtStatus*, GetTensorElementType, const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*);
    FUNCTION(OrtStatus*, GetDimensionsCount, const OrtTensorTypeAndShapeInfo*, size_t*);
    FUNCTION(OrtStatus*, GetDimensions, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
    SKIPPED(63, 63);
    FUNCTION(OrtStatus*, GetTensorShapeElementCount, const OrtTensorTypeAndShapeInfo*, size_t*);
    FUNCTION(OrtStatus*, GetTensorTypeAndShape, const OrtValue*, OrtTensorTypeAndShapeInfo**);
    SKIPPED(66, 68);
    FUNCTION(OrtStatus*, CreateCpuMemoryInfo, OrtAllocatorType, OrtMemType, OrtMemoryInfo**);
    SKIPPED(70, 75);
    FUNCTION(OrtStatus*, AllocatorFree, OrtAllocator*, void*);
    SKIPPED(77, 77);
    FUNCTION(OrtStatus*, GetAllocatorWithDefaultOptions, OrtAllocator**);
    SKIPPED(79, 91);
    FUNCTION(void, ReleaseEnv, OrtEnv*);
    FUNCTION(void, ReleaseStatus, OrtStatus*);
    FUNCTION(void, ReleaseMemoryInfo, OrtMemoryInfo*);
    FUNCTION(void, ReleaseSession, OrtSession*);
    FUNCTION(void, ReleaseValue, OrtValue*);
    SKIPPED(97, 98);
    FUNCTION(void, ReleaseTensorTypeAndShapeInfo, OrtTensorTypeAndShapeInfo*);
    FUNCTION(void, ReleaseSessionOptions, OrtSessionOptions*);
    SKIPPED(101, 101);
} OrtApi;

typedef struct OrtApiBase {
    FUNCTION(const OrtApi*, GetApi, uint32_t version);
    FUNCTION(const char*, GetVersionString, void);
} OrtApiBase;

#undef FUNCTION
#undef SKIPPED

#ifdef __cplusplus
static_assert(sizeof(OrtApi) == 102 * sizeof(void*), "an entry of the table is missing");
extern "C"
#endif
const OrtApiBase* ORT_API_CALL OrtGetApiBase(void);
