// A GPU that computes nothing: the CUDA runtime and driver as torch calls them, on a machine without a GPU.
//
// Preloaded under torch (see conftest.py), it lets torch's own CUDA code run: devices, data types, autocast, the gradient
// scaler, streams, events, pinned memory and the caching allocator are real. Device memory is host memory, copies copy, and
// kernels do nothing, so results mean nothing: a copy to the host delivers `true` for one byte and zeros for more, unless
// "real copies" is set. cuBLAS and NCCL are stubs, which conftest.py generates. cuDNN must be disabled.
//
// Controls, through ctypes: null_gpu_set(name, value) and null_gpu_count(prefix), see below.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

namespace {
std::recursive_mutex mutex;
#define LOCK std::lock_guard<std::recursive_mutex> lock(mutex)

// Settings.
//   "real copies"   1: a copy to the host delivers the bytes of the device memory
//   "late copies"   1: asynchronous copies of pinned memory run as late as an event, a wait or a query allows
//   "device bytes"  memory of each device
//   "pinned bytes"  pinned memory of the host
std::map<std::string, size_t> settings = {{"device bytes", 15500000000ull}, {"pinned bytes", 8000000000ull}};
std::map<std::string, long> counts;  // calls since the last null_gpu_set("counts", 0)
const int DEVICES = 2;
thread_local int current = 0;
size_t used[DEVICES], pinned_used;
std::map<char*, size_t> pinned, device_memory;
std::unordered_map<void*, int> owner;
std::unordered_map<const void*, std::string> kernels;

struct Event { unsigned long recorded = 0, done = 0; void* stream = nullptr; };
enum What { COPY, RECORD, WAIT };
struct Operation { What what; void* to; const void* from; size_t bytes; Event* event; unsigned long version; };
std::map<void*, std::deque<Operation>> queues;  // of each stream, with "late copies"

void count(const std::string& name) { LOCK; counts[name]++; }
bool late() { return settings["late copies"] != 0; }
void* key(cudaStream_t stream) {  // each device has its own default stream
    return (size_t)stream <= 2 ? (void*)(long)(-1 - current) : (void*)stream;
}
bool contains(std::map<char*, size_t>& blocks, const void* pointer) {
    auto next = blocks.upper_bound((char*)pointer);
    if (next == blocks.begin()) return false;
    --next;
    return (char*)pointer < next->first + next->second;
}
void drain(void* stream, Event* until = nullptr, unsigned long version = 0) {  // run what is queued, up to an event
    auto& queue = queues[stream];
    while (!queue.empty()) {
        Operation next = queue.front();
        queue.pop_front();
        if (next.what == COPY) memmove(next.to, next.from, next.bytes);
        if (next.what == RECORD) next.event->done = next.version;
        if (next.what == WAIT && next.event->done < next.version && next.event->stream != stream)
            drain(next.event->stream, next.event, next.version);
        if (until && until->done >= version) return;
    }
}
cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream, bool asynchronous) {
    LOCK;
    bool is_pinned = contains(pinned, kind == cudaMemcpyDeviceToHost ? to : from);
    const char* names[] = {"host to host", "host to device", "device to host", "device to device", "default"};
    count(std::string("copy ") + names[kind] + (is_pinned ? ", pinned" : ""));
    if (late() && asynchronous && (kind == cudaMemcpyDeviceToDevice || is_pinned)) {
        queues[key(stream)].push_back({COPY, to, from, bytes, nullptr, 0});
        return cudaSuccess;
    }
    if (late()) drain(key(stream));
    if (kind == cudaMemcpyDeviceToHost && !settings["real copies"]) memset(to, bytes == 1, bytes);
    else memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t launched(const void* function) {
    LOCK;
    count("launch");
    auto found = kernels.find(function);
    if (found != kernels.end()) count("kernel " + found->second);
    return cudaSuccess;
}
}  // namespace

extern "C" {
void null_gpu_set(const char* name, size_t value) {
    LOCK;
    if (!strcmp(name, "counts")) counts.clear();
    else settings[name] = value;
}
long null_gpu_count(const char* prefix) {  // "launch", "copy", "wait", "malloc", "set device", "blas"
    LOCK;
    long total = 0;
    for (auto& entry : counts)
        if (entry.first.rfind(prefix, 0) == 0) total += entry.second;
    return total;
}
void null_gpu_called(const char* name) { count(std::string("blas ") + name); }

// Devices: two T4
cudaError_t cudaGetDeviceCount(int* number) { *number = DEVICES; return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { *device = current; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    count("set device");
    if (device < 0 || device >= DEVICES) return cudaErrorInvalidDevice;
    current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "null GPU");
    p->major = 7; p->minor = 5; p->totalGlobalMem = settings["device bytes"];
    p->multiProcessorCount = 40; p->warpSize = 32; p->maxThreadsPerBlock = p->maxThreadsPerMultiProcessor = 1024;
    p->sharedMemPerBlock = 49152; p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin = 65536;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536; p->maxBlocksPerMultiProcessor = 16;
    p->l2CacheSize = 4194304; p->memoryBusWidth = 256; p->textureAlignment = 512;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->unifiedAddressing = p->concurrentKernels = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 40; break;
        case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 1024; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 7; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 5; break;
        default: *value = 1;
    }
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024; a->ptxVersion = a->binaryVersion = 75; a->numRegs = 32;
    a->maxDynamicSharedSizeBytes = 49152;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }

// Memory
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = settings["device bytes"];
    *free = *total - used[current];
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    LOCK;
    count("malloc");
    if (used[current] + bytes > settings["device bytes"] || posix_memalign(pointer, 512, bytes + 64))
        return cudaErrorMemoryAllocation;
    used[current] += bytes;
    owner[*pointer] = current;
    device_memory[(char*)*pointer] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
    LOCK;
    auto block = device_memory.find((char*)pointer);
    if (block == device_memory.end()) return cudaSuccess;
    used[owner[pointer]] -= block->second;
    device_memory.erase(block);
    free(pointer);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    LOCK;
    count("pinned malloc");
    if (pinned_used + bytes > settings["pinned bytes"] || posix_memalign(pointer, 4096, bytes))
        return cudaErrorMemoryAllocation;
    pinned_used += bytes;
    pinned[(char*)*pointer] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
    LOCK;
    pinned_used -= pinned[(char*)pointer];
    pinned.erase((char*)pointer);
    free(pointer);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* pointer) {
    LOCK;
    memset(a, 0, sizeof *a);
    a->type = contains(device_memory, pointer) ? cudaMemoryTypeDevice
              : contains(pinned, pointer)      ? cudaMemoryTypeHost
                                               : cudaMemoryTypeUnregistered;
    a->device = current;
    a->devicePointer = a->hostPointer = (void*)pointer;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, bytes, kind, stream, true);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return copy(to, from, bytes, kind, 0, false);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
    return copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream, true);
}
cudaError_t cudaMemset(void* pointer, int value, size_t bytes) { memset(pointer, value, bytes); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
    memset(pointer, value, bytes);
    return cudaSuccess;
}

// Streams and events
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    *stream = (cudaStream_t)malloc(16);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    LOCK;
    count("wait for a stream");
    drain(key(stream));
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    LOCK;
    count("wait for the device");
    for (auto& queue : queues) drain(queue.first);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    LOCK;
    return queues[key(stream)].empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { *event = (cudaEvent_t) new Event; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned) {
    LOCK;
    Event* event = (Event*)handle;
    event->recorded++;
    event->stream = key(stream);
    auto& queue = queues[key(stream)];
    if (late() && !queue.empty()) queue.push_back({RECORD, nullptr, nullptr, 0, event, event->recorded});
    else event->done = event->recorded;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecordWithFlags(event, stream, 0); }
cudaError_t cudaEventQuery(cudaEvent_t handle) {
    LOCK;
    Event* event = (Event*)handle;
    return event->done >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    LOCK;
    Event* event = (Event*)handle;
    count("event wait");
    if (event->done < event->recorded) drain(event->stream, event, event->recorded);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) { *milliseconds = 1; return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned) {
    LOCK;
    Event* event = (Event*)handle;
    if (late() && event->done < event->recorded)
        queues[key(stream)].push_back({WAIT, nullptr, nullptr, 0, event, event->recorded});
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// Errors, the driver, and kernels, which are registered by name and never run
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : "null GPU error"; }
const char* cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "null"; }
cudaError_t cudaGetSymbolAddress(void** pointer, const void* symbol) { *pointer = (void*)symbol; return cudaSuccess; }
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return 0;
}
static int success() { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
    *function = !strcmp(name, "cuDevicePrimaryCtxGetState") ? (void*)cuDevicePrimaryCtxGetState : (void*)success;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) { static void* handle[1]; return handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(
    void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
    LOCK;
    kernels[host] = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) { *kernel = (cudaKernel_t)host; return cudaSuccess; }
struct Launch { dim3 grid, block; size_t shared; cudaStream_t stream; };
static thread_local Launch launch;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    launch = {grid, block, shared, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = launch.grid; *block = launch.block; *shared = launch.shared; *(cudaStream_t*)stream = launch.stream;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
    return launched((const void*)kernel);
}
cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t) { return launched(function); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* function, void**) { return launched(function); }

// The only functions of cuBLAS and NCCL whose results torch reads; conftest.py generates the others.
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int* found) {
    *found = 1;
    return 0;
}
}
