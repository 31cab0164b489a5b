/* The CUDA runtime of a device that is not there: what libcudart.so answers, without a driver.

   Preloaded, so that torch, sgl_kernel and FlashInfer find these symbols first. Memory of the
   device is memory of the host, copies are copies, streams are in order and done at once, and a
   kernel that is launched does nothing: device.py computes instead. Waiting for the device is an error
   while a graph is captured. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "driver_types.h"

#define API __attribute__((visibility("default")))
#define OK cudaSuccess

enum { MAJOR = 9, MINOR = 0, PROCESSORS = 132, WARP = 32, SHARED = 232448 };
static size_t total(void) {
    const char *gib = getenv("SIMULATED_GPU_GIB"); /* a larger one, which computes little */
    return gib ? (size_t)atoi(gib) << 30 : (size_t)9 << 29;
}
static const size_t PAGE = 4096;

typedef struct Allocation {
    char *start;
    size_t size;
    int host;
    struct Allocation *next;
} Allocation;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation *allocations;
static size_t taken;
static __thread int capturing;

static size_t pages(size_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

static cudaError_t allocate(void **out, size_t size, int host) {
    *out = NULL;
    if (size == 0) return OK;
    pthread_mutex_lock(&lock);
    int full = !host && taken + size > total();
    if (!full && !host) taken += size;
    pthread_mutex_unlock(&lock);
    if (full) return cudaErrorMemoryAllocation;
    /* Pages are the machine's only once they are written: a KV pool costs what it holds. */
    void *start = mmap(NULL, pages(size), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
    Allocation *made = malloc(sizeof *made);
    *made = (Allocation){start, size, host, NULL};
    pthread_mutex_lock(&lock);
    made->next = allocations;
    allocations = made;
    pthread_mutex_unlock(&lock);
    *out = start;
    return OK;
}

static cudaError_t release(void *start) {
    pthread_mutex_lock(&lock);
    for (Allocation **at = &allocations; *at; at = &(*at)->next) {
        Allocation *found = *at;
        if (found->start != start) continue;
        *at = found->next;
        if (!found->host) taken -= found->size;
        pthread_mutex_unlock(&lock);
        munmap(found->start, pages(found->size));
        free(found);
        return OK;
    }
    pthread_mutex_unlock(&lock);
    return start ? cudaErrorInvalidValue : OK;
}

static int kind(const void *pointer) { /* 0 unknown, 1 device, 2 pinned host */
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Allocation *at = allocations; at && !found; at = at->next)
        if ((char *)pointer >= at->start && (char *)pointer < at->start + at->size)
            found = at->host ? 2 : 1;
    pthread_mutex_unlock(&lock);
    return found;
}

/* Of the device. */

API cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, OK; }
API cudaError_t cudaGetDevice(int *device) { return *device = 0, OK; }
API cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : OK; }
API cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, OK; }
API cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, OK; }
API cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    *all = total();
    *available = *all - taken;
    return OK;
}

API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
    memset(out, 0, sizeof *out);
    strcpy(out->name, "simulated GPU");
    out->totalGlobalMem = total();
    out->major = MAJOR;
    out->minor = MINOR;
    out->multiProcessorCount = PROCESSORS;
    out->warpSize = WARP;
    out->maxThreadsPerBlock = 1024;
    out->maxThreadsPerMultiProcessor = 2048;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->sharedMemPerBlock = 49152;
    out->sharedMemPerBlockOptin = out->sharedMemPerMultiprocessor = SHARED;
    out->l2CacheSize = 50 << 20;
    out->maxGridSize[0] = 2147483647;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
    out->maxThreadsDim[2] = 64;
    return OK;
}

API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = MAJOR; break;
        case cudaDevAttrComputeCapabilityMinor: *value = MINOR; break;
        case cudaDevAttrMultiProcessorCount: *value = PROCESSORS; break;
        case cudaDevAttrWarpSize: *value = WARP; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        default: *value = 0;
    }
    return OK;
}

API cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) {
    return snprintf(id, size, "0000:00:00.0"), OK;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, OK;
}
API cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 0, OK; }

/* Of memory. */

API cudaError_t cudaMalloc(void **out, size_t size) { return allocate(out, size, 0); }
API cudaError_t cudaMallocAsync(void **out, size_t size, cudaStream_t stream) {
    return allocate(out, size, 0);
}
API cudaError_t cudaHostAlloc(void **out, size_t size, unsigned flags) {
    return allocate(out, size, 1);
}
API cudaError_t cudaFree(void *start) { return release(start); }
API cudaError_t cudaFreeAsync(void *start, cudaStream_t stream) { return release(start); }
API cudaError_t cudaFreeHost(void *start) { return release(start); }
API cudaError_t cudaHostGetDevicePointer(void **out, void *host, unsigned flags) {
    return *out = host, OK;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *pointer) {
    static const enum cudaMemoryType types[] = {
        cudaMemoryTypeUnregistered, cudaMemoryTypeDevice, cudaMemoryTypeHost};
    memset(out, 0, sizeof *out);
    out->type = types[kind(pointer)];
    out->devicePointer = out->hostPointer = (void *)pointer;
    return OK;
}
API cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind way) {
    return memmove(to, from, size), OK;
}
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind way,
                                cudaStream_t stream) {
    return memmove(to, from, size), OK;
}
API cudaError_t cudaMemset(void *to, int value, size_t size) { return memset(to, value, size), OK; }
API cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
    return memset(to, value, size), OK;
}

/* Of streams, events and graphs. */

static uintptr_t handles = 0x1000;
static void *handle(void) { return (void *)__sync_add_and_fetch(&handles, 16); }

API cudaError_t cudaStreamCreate(cudaStream_t *out) { return *out = handle(), OK; }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
    return *out = handle(), OK;
}
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority) {
    return *out = handle(), OK;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    return *priority = 0, OK;
}
API cudaError_t cudaEventCreate(cudaEvent_t *out) { return *out = handle(), OK; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    return *out = handle(), OK;
}
API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    return *ms = 1.0f, OK;
}

static int fails_in_capture(void) { return capturing ? cudaErrorStreamCaptureUnsupported : OK; }

API cudaError_t cudaDeviceSynchronize(void) { return fails_in_capture(); }
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return fails_in_capture(); }
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { return fails_in_capture(); }
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return fails_in_capture(); }
API cudaError_t cudaEventQuery(cudaEvent_t event) { return OK; }

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    return capturing = 1, OK;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    return capturing = 0, *graph = handle(), OK;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return OK;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                         unsigned long long *id, cudaGraph_t *graph,
                                         const cudaGraphNode_t **nodes,
                                         const cudaGraphEdgeData **edges, size_t *count) {
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    if (id) *id = 1;
    if (graph) *graph = NULL;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return OK;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t graph,
                                              unsigned long long flags) {
    return *out = handle(), OK;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph,
                                     unsigned long long flags) {
    return *out = handle(), OK;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    return *count = 1, OK;
}

/* Of kernels: registered and never run. */

API void **__cudaRegisterFatBinary(void *binary) { return calloc(1, sizeof(void *)); }
API cudaError_t __cudaGetKernel(void **kernel, const void *function) {
    return *kernel = (void *)function, OK;
}
API cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 threads, void **arguments,
                                 size_t shared, cudaStream_t stream) {
    return OK;
}
API cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 threads, void **arguments,
                                   size_t shared, cudaStream_t stream) {
    return OK;
}
API cudaError_t cudaLaunchKernelExC(const void *config, const void *kernel, void **arguments) {
    return OK;
}
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel) {
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    out->numRegs = 64;
    return OK;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks,
                                                                       const void *kernel, int size,
                                                                       size_t shared,
                                                                       unsigned flags) {
    return *blocks = 2, OK;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                              int size, size_t shared) {
    return *blocks = 2, OK;
}

/* Functions of the driver that libraries look up by name, as the encoder of tensor maps. */

static int nothing(void) { return 0; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function,
                                                 unsigned version, unsigned long long flags,
                                                 enum cudaDriverEntryPointQueryResult *found) {
    *function = (void *)nothing;
    if (found) *found = cudaDriverEntryPointSuccess;
    return OK;
}
API const char *cudaGetErrorString(cudaError_t error) { return "simulated CUDA error"; }
API const char *cudaGetErrorName(cudaError_t error) { return "cudaErrorSimulated"; }
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    return function(data), OK;
}

/* Whatever succeeds by doing nothing, of any arguments. */

#define DONE(name) \
    API int name(void) { return 0; }

DONE(__cudaPopCallConfiguration)
DONE(__cudaPushCallConfiguration)
DONE(__cudaRegisterFatBinaryEnd)
DONE(__cudaRegisterFunction)
DONE(__cudaRegisterVar)
DONE(__cudaUnregisterFatBinary)
DONE(cuPointerGetAttribute)
DONE(cudaDeviceEnablePeerAccess)
DONE(cudaEventDestroy)
DONE(cudaEventRecord)
DONE(cudaEventRecordWithFlags)
DONE(cudaFuncSetAttribute)
DONE(cudaGetLastError)
DONE(cudaGraphDestroy)
DONE(cudaGraphExecDestroy)
DONE(cudaGraphLaunch)
DONE(cudaGraphRetainUserObject)
DONE(cudaHostRegister)
DONE(cudaHostUnregister)
DONE(cudaKernelSetAttributeForDevice)
DONE(cudaLibraryLoadData)
DONE(cudaLibraryUnload)
DONE(cudaPeekAtLastError)
DONE(cudaProfilerStart)
DONE(cudaProfilerStop)
DONE(cudaStreamDestroy)
DONE(cudaStreamUpdateCaptureDependencies)
DONE(cudaStreamWaitEvent)
DONE(cudaThreadExchangeStreamCaptureMode)
DONE(cudaUserObjectCreate)
DONE(cudaUserObjectRelease)

API int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    return *flags = 0, *active = 1, 0;
}
API int cuGetErrorString(int error, const char **text) { return *text = "simulated", 0; }
