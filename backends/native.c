/* AllReduce between the ranks of one host, as an op that onnxruntime runs inside a session.
 *
 * The same rounds through the same shared memory as window.py and comm_window.py run in Python: ranks
 * with and without this library understand each other. It lets one session hold a whole decoder;
 * between sessions Python would find its code out of the caches after every layer.
 *
 * Of onnxruntime's C interface only the entries that are used have names here. Their places never
 * change: the interface promises that new ones are added at the end.
 */

#define _POSIX_C_SOURCE 200809L

#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* --- the shared memory ------------------------------------------------------------------------ */

typedef struct {
    int64_t *count;       /* meetings so far, counted by Python as well */
    int64_t *flags;       /* in shared memory: of every rank the last meeting it has come to, */
                          /* and where in its heap its operand and its result lie */
    char *slots;          /* in shared memory: two sets of one slot per rank */
    char *heaps;          /* of all ranks, this one's is heap.c's; or NULL */
    char *records;        /* of the flight recorder, or NULL */
    int64_t rank, size;
    int64_t stride;       /* int64 from one flag to the next */
    int64_t slot_bytes;
    int64_t chunk_bytes;  /* that are summed in one round */
    int64_t small_bytes;  /* up to here all ranks sum everything */
    int64_t heap_bytes;   /* of one heap */
    int64_t polls;        /* how often to look at a flag before the core is offered to others */
    int64_t signals;      /* a file that Python's handler writes the numbers of signals to, or -1 */
    double patience;      /* seconds of that before naps */
    double nap;           /* seconds */
    double seconds;       /* spent in nodes so far */
    int64_t in_heaps;     /* sums so far of what lies in heaps */
} Link;

/* What native.py must find here: a library of another version of it would be misunderstood. */
const int64_t tpcore_native_layout = (4 << 16) + sizeof(Link);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Whether Ctrl-C has come. Python itself looks only when the session is done. */
static int interrupted(const Link *link) {
    char signals[16];
    ssize_t count = link->signals < 0 ? 0 : read((int)link->signals, signals, sizeof signals);
    return count > 0 && memchr(signals, SIGINT, count) != NULL;
}

static int wait_for(const Link *link, const int64_t *flag, int64_t count) {
    /* No PAUSE: in a virtual machine a row of them gives the core away. */
    for (int64_t i = 0; i < link->polls; i++)
        if (__atomic_load_n(flag, __ATOMIC_ACQUIRE) >= count) return 1;
    double patient_until = now() + link->patience;
    struct timespec nap = {0, (long)(link->nap * 1e9)};
    while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) < count) {
        if (link->patience > 0 && now() < patient_until) {
            sched_yield();
        } else {
            if (interrupted(link)) return 0;
            nanosleep(&nap, NULL);
        }
    }
    return 1;
}

/* Wait for all; 0 if Ctrl-C has come before they have. */
static int meet(Link *link) {
    int64_t count = ++*link->count;
    __atomic_store_n(link->flags + link->rank * link->stride, count, __ATOMIC_RELEASE);
    for (int64_t other = 0; other < link->size; other++)
        if (other != link->rank && !wait_for(link, link->flags + other * link->stride, count))
            return 0;
    return 1;
}

/* The slot of a rank in the set that has its turn after `ahead` more meetings. */
static float *slot(const Link *link, int64_t rank, int64_t ahead) {
    int64_t turn = (*link->count + ahead) & 1;
    return (float *)(link->slots + (turn * link->size + rank) * link->slot_bytes);
}

/* heap.c */
int tpcore_heap_exists(void);
void tpcore_heap_abandon(void);
int64_t tpcore_heap_offset(const void *);
void *tpcore_alloc(size_t);
void *tpcore_reserve(size_t);
void tpcore_free(void *);

/* What a rank says behind its flag: how much it sums, and where in its heap that is. */
enum { LENGTH = 1, OPERAND = 2, TOTAL_AT = 3 };
enum { BLOCK = 4096, MAX_RANKS = 256 };

/* --- AllReduce -------------------------------------------------------------------------------- */

/* Sums run in rank order, so all ranks and all ways to exchange get the same bits. */
static void add(float *total, const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) total[i] = a[i] + b[i];
}

/* Every rank sums everything: one meeting. */
static int sum_all(Link *link, const float *operand, float *total, int64_t n) {
    memcpy(slot(link, link->rank, 0), operand, n * sizeof *operand);
    if (!meet(link)) return 0;
    /* Its own part each rank has at hand, unless the sum has overwritten it already. */
    const float *first = link->rank == 0 ? operand : slot(link, 0, -1);
    add(total, first, link->rank == 1 ? operand : slot(link, 1, -1), n);
    for (int64_t rank = 2; rank < link->size; rank++) add(total, total, slot(link, rank, -1), n);
    return 1;
}

/* Every rank sums its share into its slot, and all copy the sums: two meetings. */
static int sum_shares(Link *link, const float *operand, float *total, int64_t n) {
    int64_t size = link->size, begin = n * link->rank / size, end = n * (link->rank + 1) / size;
    memcpy(slot(link, link->rank, 0), operand, n * sizeof *operand);
    if (!meet(link)) return 0;
    float *mine = slot(link, link->rank, 0) + begin;
    for (int64_t rank = 1; rank < size; rank++) {
        const float *before = rank > 1 ? mine : slot(link, 0, -1) + begin;
        add(mine, before, slot(link, rank, -1) + begin, end - begin);
    }
    if (!meet(link)) return 0;
    for (int64_t rank = 0; rank < size; rank++) {
        int64_t from = n * rank / size, to = n * (rank + 1) / size;
        memcpy(total + from, slot(link, rank, -1) + from, (to - from) * sizeof *total);
    }
    return 1;
}

/* A share of the sum of two, for both. */
static void sum_pair(const float *const *parts, float *const *totals, int64_t begin, int64_t end) {
    const float *a = parts[0], *b = parts[1];
    float *first = totals[0], *second = totals[1];
#pragma GCC ivdep /* each result may lie where its operand lay, and nowhere else among them */
    for (int64_t i = begin; i < end; i++) {
        float sum = a[i] + b[i];
        first[i] = sum;
        second[i] = sum;
    }
}

/* The same of any number, a block in the first-level cache at a time. */
static void sum_block(const float *const *parts, float *const *totals, int64_t size, int64_t begin,
                      int64_t n) {
    float sum[BLOCK];
    add(sum, parts[0] + begin, parts[1] + begin, n);
    for (int64_t rank = 2; rank < size; rank++) add(sum, sum, parts[rank] + begin, n);
    for (int64_t rank = 0; rank < size; rank++) memcpy(totals[rank] + begin, sum, n * sizeof *sum);
}

/* How a sum has ended. */
enum { INTERRUPTED = 0, DONE = 1, ELSEWHERE = 2, UNEQUAL = 3 };

/* Every rank sums its share of what lies in all heaps, into all of them: two meetings and no copy.
 * ELSEWHERE if somebody's operand or result does not, after the first. */
static int sum_in_heaps(Link *link, const float *operand, float *total, int64_t n) {
    int64_t size = link->size, *said = link->flags + link->rank * link->stride;
    const float *parts[MAX_RANKS];
    float *totals[MAX_RANKS];
    said[LENGTH] = n;
    said[OPERAND] = tpcore_heap_offset(operand);
    said[TOTAL_AT] = tpcore_heap_offset(total);
    if (!meet(link)) return INTERRUPTED;
    for (int64_t rank = 0; rank < size; rank++)
        if (link->flags[rank * link->stride + LENGTH] != n) return UNEQUAL;
    for (int64_t rank = 0; rank < size; rank++) {
        const int64_t *place = link->flags + rank * link->stride;
        char *heap = link->heaps + rank * link->heap_bytes;
        if (place[OPERAND] < 0 || place[TOTAL_AT] < 0) return ELSEWHERE;
        parts[rank] = (const float *)(heap + place[OPERAND]);
        totals[rank] = (float *)(heap + place[TOTAL_AT]);
    }
    int64_t begin = n * link->rank / size, end = n * (link->rank + 1) / size;
    if (size == 2) {
        sum_pair(parts, totals, begin, end);
    } else {
        for (; begin < end; begin += BLOCK)
            sum_block(parts, totals, size, begin, end - begin < BLOCK ? end - begin : BLOCK);
    }
    return meet(link) ? DONE : INTERRUPTED;
}

/* Sum float32 of all ranks; `total` may be `operand`. DONE, INTERRUPTED or UNEQUAL. */
static int sum(Link *link, const float *operand, float *total, int64_t n) {
    int64_t step = link->chunk_bytes / (int64_t)sizeof *operand;
    int small = n * (int64_t)sizeof *operand <= link->small_bytes;
    if (!small && link->heaps != NULL && link->size <= MAX_RANKS) {
        int ended = sum_in_heaps(link, operand, total, n);
        link->in_heaps += ended == DONE;
        if (ended == INTERRUPTED) tpcore_heap_abandon(); /* others are on their way here */
        if (ended != ELSEWHERE) return ended;
    } else {
        link->flags[link->rank * link->stride + LENGTH] = n; /* for who comes with more */
    }
    int all = link->size == 2 || small;
    for (int64_t begin = 0; begin < n; begin += step) {
        int64_t count = n - begin < step ? n - begin : step;
        if (!(all ? sum_all : sum_shares)(link, operand + begin, total + begin, count))
            return INTERRUPTED;
    }
    return DONE;
}

/* The same for Python, which has these numbers too. */
int64_t tpcore_sum(Link *link, const float *operand, float *total, int64_t n) {
    return sum(link, operand, total, n);
}

/* --- the flight recorder, as flight.py reads it ----------------------------------------------- */

enum { TOTAL = 24, ENTERED = 40, FIRST = 64, RING = 126 };
enum { LEAVE = 0, ENTER = 1 };

typedef struct {
    int64_t number;
    int32_t step, phase;
    int64_t entered;
    double when;
} Record;

static void record(char *records, int64_t step, int32_t phase, double when) {
    if (records == NULL || step < 0) return;
    int64_t *total = (int64_t *)(records + TOTAL), number = *total;
    Record written = {number, (int32_t)step, phase, *(int64_t *)(records + ENTERED), when};
    memcpy(records + FIRST + sizeof written * (number % RING), &written, sizeof written);
    __atomic_store_n(total, number + 1, __ATOMIC_RELEASE);
}

/* --- the op ----------------------------------------------------------------------------------- */

typedef struct OrtStatus OrtStatus;
struct Op;
struct Allocator;

enum { API_VERSION = 18, FLOAT = 1, FAIL = 1, MAX_DIMS = 32 };

typedef struct {
    OrtStatus *(*CreateStatus)(int, const char *);
    void *before_3[3 - 1];
    OrtStatus *(*CreateEnv)(int, const char *, void **);
    void *before_26[26 - 4];
    OrtStatus *(*CreateCustomOpDomain)(const char *, void **);
    OrtStatus *(*CustomOpDomain_Add)(void *, const struct Op *);
    OrtStatus *(*AddCustomOpDomain)(void *, void *);
    void *before_51[51 - 29];
    OrtStatus *(*GetTensorMutableData)(void *, void **);
    void *before_61[61 - 52];
    OrtStatus *(*GetDimensionsCount)(const void *, size_t *);
    OrtStatus *(*GetDimensions)(const void *, int64_t *, size_t);
    void *before_65[65 - 63];
    OrtStatus *(*GetTensorTypeAndShape)(const void *, void **);
    void *before_69[69 - 66];
    OrtStatus *(*CreateCpuMemoryInfo)(int, int, void **);
    void *before_78[78 - 70];
    OrtStatus *(*GetAllocatorWithDefaultOptions)(struct Allocator **);
    void *before_86[86 - 79];
    OrtStatus *(*KernelInfoGetAttribute_int64)(const void *, const char *, int64_t *);
    void *before_90[90 - 87];
    OrtStatus *(*KernelContext_GetInput)(const void *, size_t, void **);
    OrtStatus *(*KernelContext_GetOutput)(void *, size_t, const int64_t *, size_t, void **);
    void (*ReleaseEnv)(void *);
    void (*ReleaseStatus)(OrtStatus *);
    void *before_99[99 - 94];
    void (*ReleaseTensorTypeAndShapeInfo)(void *);
    void *before_176[176 - 100];
    OrtStatus *(*RegisterAllocator)(void *, struct Allocator *);
} Api;

_Static_assert(offsetof(Api, RegisterAllocator) == 176 * sizeof(void *), "a gap");

typedef struct {
    const Api *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} ApiBase;

typedef struct {
    const Api *api;
    Link *link;
    int64_t step; /* of this exchange in the flight recorder; segments are before and after it. */
                  /* Far below 0 where it is not to be recorded */
} Kernel;

static OrtStatus *make_kernel(const struct Op *op, const Api *api, const void *info, void **made) {
    int64_t link = 0, step = 0;
    OrtStatus *wrong = api->KernelInfoGetAttribute_int64(info, "link", &link);
    if (wrong == NULL) wrong = api->KernelInfoGetAttribute_int64(info, "step", &step);
    if (wrong != NULL) return wrong;
    Kernel *kernel = malloc(sizeof *kernel);
    if (kernel == NULL) return api->CreateStatus(FAIL, "out of memory");
    *kernel = (Kernel){api, (Link *)(intptr_t)link, step};
    *made = kernel;
    return NULL;
}

static OrtStatus *like(const Api *api, void *x, void *context, void **y, int64_t *count) {
    void *info;
    int64_t dims[MAX_DIMS];
    size_t rank;
    OrtStatus *wrong = api->GetTensorTypeAndShape(x, &info);
    if (wrong != NULL) return wrong;
    wrong = api->GetDimensionsCount(info, &rank);
    if (wrong == NULL && rank > MAX_DIMS) wrong = api->CreateStatus(FAIL, "too many dims");
    if (wrong == NULL) wrong = api->GetDimensions(info, dims, rank);
    api->ReleaseTensorTypeAndShapeInfo(info);
    if (wrong != NULL) return wrong;
    *count = 1;
    for (size_t d = 0; d < rank; d++) *count *= dims[d];
    return api->KernelContext_GetOutput(context, 0, dims, rank, y);
}

static OrtStatus *compute(void *held, void *context) {
    const Kernel *kernel = held;
    const Api *api = kernel->api;
    Link *link = kernel->link;
    void *x, *y, *operand, *total;
    int64_t count;
    double began = now();
    record(link->records, kernel->step - 1, LEAVE, began);
    OrtStatus *wrong = api->KernelContext_GetInput(context, 0, &x);
    if (wrong == NULL) wrong = like(api, x, context, &y, &count);
    if (wrong == NULL) wrong = api->GetTensorMutableData(x, &operand);
    if (wrong == NULL) wrong = api->GetTensorMutableData(y, &total);
    if (wrong != NULL) return wrong;
    if (link->records != NULL && kernel->step >= 0) ++*(int64_t *)(link->records + ENTERED);
    record(link->records, kernel->step, ENTER, began);
    int how = interrupted(link) ? INTERRUPTED : sum(link, operand, total, count);
    if (how == INTERRUPTED) return api->CreateStatus(FAIL, "it was interrupted");
    if (how == UNEQUAL) return api->CreateStatus(FAIL, "the ranks sum unequal numbers of values");
    double ended = now();
    record(link->records, kernel->step, LEAVE, ended);
    record(link->records, kernel->step + 1, ENTER, ended);
    link->seconds += ended - began;
    return NULL;
}

static const char *name(const struct Op *op) { return "AllReduce"; }
static const char *provider(const struct Op *op) { return NULL; }
static int type(const struct Op *op, size_t i) { return FLOAT; }
static size_t one(const struct Op *op) { return 1; }
static size_t two(const struct Op *op) { return 2; }
static int zero(const struct Op *op) { return 0; }
static int required(const struct Op *op, size_t i) { return 0; }
/* The second input is the result of the collective before: so they run in order. */
static int first_required(const struct Op *op, size_t i) { return i > 0; }
/* The sum may lie where the operand lay. */
static size_t in_place(int **inputs, int **outputs) {
    static int operand = 0, total = 0;
    *inputs = &operand;
    *outputs = &total;
    return 1;
}
static void keep_both(int *inputs, int *outputs) {}

static const struct Op {
    uint32_t version;
    void *(*CreateKernel)(const struct Op *, const Api *, const void *);
    const char *(*GetName)(const struct Op *);
    const char *(*GetExecutionProviderType)(const struct Op *);
    int (*GetInputType)(const struct Op *, size_t);
    size_t (*GetInputTypeCount)(const struct Op *);
    int (*GetOutputType)(const struct Op *, size_t);
    size_t (*GetOutputTypeCount)(const struct Op *);
    void (*KernelCompute)(void *, void *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const struct Op *, size_t);
    int (*GetOutputCharacteristic)(const struct Op *, size_t);
    int (*GetInputMemoryType)(const struct Op *, size_t);
    int (*GetVariadicInputMinArity)(const struct Op *);
    int (*GetVariadicInputHomogeneity)(const struct Op *);
    int (*GetVariadicOutputMinArity)(const struct Op *);
    int (*GetVariadicOutputHomogeneity)(const struct Op *);
    OrtStatus *(*CreateKernelV2)(const struct Op *, const Api *, const void *, void **);
    OrtStatus *(*KernelComputeV2)(void *, void *);
    OrtStatus *(*InferOutputShapeFn)(const struct Op *, void *);
    int (*GetStartVersion)(const struct Op *);
    int (*GetEndVersion)(const struct Op *);
    size_t (*GetMayInplace)(int **, int **);
    void (*ReleaseMayInplace)(int *, int *);
    size_t (*GetAliasMap)(int **, int **);
    void (*ReleaseAliasMap)(int *, int *);
} all_reduce = {
    .version = API_VERSION,
    .GetName = name,
    .GetExecutionProviderType = provider,
    .GetInputType = type,
    .GetInputTypeCount = two,
    .GetOutputType = type,
    .GetOutputTypeCount = one,
    .KernelDestroy = free,
    .GetInputCharacteristic = first_required,
    .GetOutputCharacteristic = required,
    .GetInputMemoryType = required,
    .GetVariadicInputMinArity = zero,
    .GetVariadicInputHomogeneity = zero,
    .GetVariadicOutputMinArity = zero,
    .GetVariadicOutputHomogeneity = zero,
    .CreateKernelV2 = make_kernel,
    .KernelComputeV2 = compute,
    .GetMayInplace = in_place,
    .ReleaseMayInplace = keep_both,
};

/* --- the heap as onnxruntime's allocator ------------------------------------------------------ */

typedef struct Allocator {
    uint32_t version;
    void *(*Alloc)(struct Allocator *, size_t);
    void (*Free)(struct Allocator *, void *);
    const void *(*Info)(const struct Allocator *);
    void *(*Reserve)(struct Allocator *, size_t);
} Allocator;

static void *info;
static Allocator *standard;

/* onnxruntime takes what it is given unseen. Its own allocator raises std::bad_alloc where there is
 * no memory, and so it does here (the library is built so that exceptions pass). */
static void *or_raise(void *made) {
    return made != NULL ? made : standard->Alloc(standard, (size_t)1 << 62);
}
static void *allocate(Allocator *allocator, size_t bytes) {
    return bytes == 0 ? NULL : or_raise(tpcore_alloc(bytes));
}
static void *reserve(Allocator *allocator, size_t bytes) {
    return bytes == 0 ? NULL : or_raise(tpcore_reserve(bytes));
}
static void give_back(Allocator *allocator, void *made) { tpcore_free(made); }
static const void *say_info(const Allocator *allocator) { return info; }

/* Have the sessions to come of this process that share an allocator take this one. */
static OrtStatus *register_allocator(const Api *api) {
    static Allocator allocator = {API_VERSION, allocate, give_back, say_info, reserve};
    void *env;
    if (info != NULL) return NULL;
    OrtStatus *wrong = api->CreateCpuMemoryInfo(0, 0, &info); /* of a device, the default kind */
    if (wrong == NULL) wrong = api->GetAllocatorWithDefaultOptions(&standard);
    if (wrong == NULL) wrong = api->CreateEnv(2, "tpcore", &env); /* it is there, and counted up */
    if (wrong != NULL) return wrong;
    OrtStatus *refused = api->RegisterAllocator(env, &allocator);
    if (refused != NULL) api->ReleaseStatus(refused);
    api->ReleaseEnv(env);
    return NULL;
}

/* What onnxruntime calls when a session is given this library. */
OrtStatus *RegisterCustomOps(void *options, const ApiBase *base) {
    static void *domain; /* must live as long as any session */
    const Api *api = base->GetApi(API_VERSION);
    if (domain == NULL) {
        void *made;
        OrtStatus *wrong = api->CreateCustomOpDomain("tpcore.native", &made);
        if (wrong == NULL) wrong = api->CustomOpDomain_Add(made, &all_reduce);
        if (wrong != NULL) return wrong;
        domain = made;
    }
    OrtStatus *wrong = tpcore_heap_exists() ? register_allocator(api) : NULL;
    return wrong != NULL ? wrong : api->AddCustomOpDomain(options, domain);
}
