/* Memory for onnxruntime that the other ranks of the host can reach, so that a sum needs no copies.
 *
 * A heap as in books: blocks lie one behind the other, each with a head; free ones are chained by
 * size and joined with their neighbours. What it once took of the system it keeps, as the arena of
 * onnxruntime does. Weights, which nobody else reads, come from the system one by one and go back.
 */

#define _GNU_SOURCE

#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGNMENT = 64, BINS = 64 };

static const size_t HUGE_PAGE = 2 << 20;

typedef struct Block {
    size_t bytes;  /* with the head */
    size_t before; /* bytes of the block in front, 0 where there is none */
    int64_t taken;
    struct Block *next, *last; /* free ones of about this size */
    char rest[ALIGNMENT - 5 * 8];
} Block;

_Static_assert(sizeof(Block) == ALIGNMENT, "what follows a head is aligned");

static struct {
    char *all; /* that all ranks have */
    size_t all_bytes;
    int file;
    char *start; /* of this rank's; NULL while there is none */
    size_t bytes; /* that there are */
    Block *end;   /* where the blocks end, and with them the memory that has ever been used */
    Block *bins[BINS]; /* free blocks of 2^bin bytes and more */
    char held;
    int abandoned;
} heap;

static void lock(void) {
    while (__atomic_test_and_set(&heap.held, __ATOMIC_ACQUIRE)) sched_yield();
}

static void unlock(void) { __atomic_clear(&heap.held, __ATOMIC_RELEASE); }

static Block *behind(Block *block) { return (Block *)((char *)block + block->bytes); }
static Block *in_front(Block *block) { return (Block *)((char *)block - block->before); }
static int bin_of(size_t bytes) { return 63 - __builtin_clzll(bytes); }

static void chain(Block *block) {
    Block **bin = &heap.bins[bin_of(block->bytes)];
    block->taken = 0;
    block->last = NULL;
    block->next = *bin;
    if (*bin != NULL) (*bin)->last = block;
    *bin = block;
}

static void unchain(Block *block) {
    if (block->last != NULL) block->last->next = block->next;
    else heap.bins[bin_of(block->bytes)] = block->next;
    if (block->next != NULL) block->next->last = block->last;
}

/* The smallest free block of its bin that is large enough. */
static Block *find(size_t bytes) {
    for (int bin = bin_of(bytes); bin < BINS; bin++) {
        Block *best = NULL;
        for (Block *block = heap.bins[bin]; block != NULL; block = block->next)
            if (block->bytes >= bytes && (best == NULL || block->bytes < best->bytes)) best = block;
        if (best != NULL) return best;
    }
    return NULL;
}

/* Map `ranks` heaps of so many bytes that lie one behind the other in a file in memory, for as long
 * as the process lives. Their address, or NULL. */
char *tpcore_heaps_map(int file, int64_t bytes, int64_t ranks) {
    char *all = mmap(NULL, bytes * ranks, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (all == MAP_FAILED) return NULL;
#ifdef MADV_DONTDUMP
    madvise(all, bytes * ranks, MADV_DONTDUMP); /* a core would have every page there might be */
#endif
    return all;
}

/* Allocate from that of `rank` from now on. */
void tpcore_heap_use(char *all, int file, int64_t bytes, int64_t rank, int64_t ranks) {
    heap.all = all;
    heap.file = file;
    heap.all_bytes = bytes * ranks;
    heap.bytes = bytes;
    heap.end = (Block *)(all + rank * bytes);
    heap.end->before = 0;
    heap.end->taken = 1; /* never joined with */
    heap.start = all + rank * bytes;
}

int tpcore_heap_exists(void) { return heap.start != NULL; }

/* Neither take from it any more nor give back to it: somebody may still write anywhere in it. */
void tpcore_heap_abandon(void) { heap.abandoned = 1; }

/* What a child does that has been forked: what it has of its parent's it reads, and what it writes
 * is its own. */
void tpcore_heap_forked(void) {
    if (heap.start == NULL) return;
    tpcore_heap_abandon();
    unlock();
    mmap(heap.all, heap.all_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
         heap.file, 0);
}

/* Where in the heap something lies; -1 if elsewhere. */
int64_t tpcore_heap_offset(const void *place) {
    const char *at = place;
    if (heap.start == NULL || at < heap.start || at >= heap.start + heap.bytes) return -1;
    return at - heap.start;
}

static void *take(size_t bytes) {
    bytes = (bytes + sizeof(Block) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    Block *block = find(bytes);
    if (block != NULL) {
        unchain(block);
        if (block->bytes >= bytes + 2 * sizeof(Block)) {
            Block *rest = (Block *)((char *)block + bytes);
            rest->bytes = block->bytes - bytes;
            rest->before = bytes;
            behind(rest)->before = rest->bytes;
            block->bytes = bytes;
            chain(rest);
        }
    } else {
        block = heap.end;
        if (bytes + sizeof(Block) > heap.bytes - ((char *)block - heap.start)) return NULL;
        block->bytes = bytes;
        heap.end = behind(block);
        heap.end->before = bytes;
        heap.end->taken = 1;
    }
    block->taken = 1;
    return block + 1;
}

static void give_back(Block *block) {
    Block *next = behind(block);
    if (!next->taken) {
        unchain(next);
        block->bytes += next->bytes;
    }
    if (block->before != 0 && !in_front(block)->taken) {
        next = block;
        block = in_front(block);
        unchain(block);
        block->bytes += next->bytes;
    }
    if (behind(block) == heap.end) {
        heap.end = block;
        block->taken = 1;
    } else {
        behind(block)->before = block->bytes;
        chain(block);
    }
}

/* Large pieces outside the heap. They begin at a huge page and leave none of it to a head. */
static struct {
    struct Piece { void *start; size_t bytes; } *all;
    size_t count, room;
} pieces;

/* So many bytes of whole pages, those in huge pages that can be. NULL if the system has none. */
static void *map_piece(size_t bytes) {
    char *found = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
    if (found == MAP_FAILED) return NULL;
    char *start = (char *)(((uintptr_t)found + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    if (start > found) munmap(found, start - found);
    munmap(start + bytes, found + HUGE_PAGE - start);
#ifdef MADV_HUGEPAGE
    madvise(start, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return start;
}

static void *take_piece(size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE);
    struct Piece made = {NULL, (bytes + page - 1) / page * page};
    lock();
    if (pieces.count == pieces.room) {
        size_t room = 2 * pieces.room + 64;
        struct Piece *grown = realloc(pieces.all, room * sizeof *grown);
        if (grown != NULL) {
            pieces.all = grown;
            pieces.room = room;
        }
    }
    if (pieces.count < pieces.room && (made.start = map_piece(made.bytes)) != NULL)
        pieces.all[pieces.count++] = made;
    unlock();
    return made.start;
}

/* 0 if it is none of them. */
static int give_back_piece(void *start) {
    lock();
    size_t at = pieces.count;
    while (at > 0 && pieces.all[at - 1].start != start) at--;
    if (at > 0) {
        munmap(start, pieces.all[at - 1].bytes);
        pieces.all[at - 1] = pieces.all[--pieces.count];
    }
    unlock();
    return at > 0;
}

/* Memory of this process alone. NULL if the system has none. */
void *tpcore_reserve(size_t bytes) {
    void *made = NULL;
    if (bytes > PTRDIFF_MAX / 2) return NULL;
    if (bytes >= HUGE_PAGE) return take_piece(bytes);
    return posix_memalign(&made, ALIGNMENT, bytes) == 0 ? made : NULL;
}

/* Memory of the heap, or of this process where there is no heap or no room in it. */
void *tpcore_alloc(size_t bytes) {
    if (heap.start == NULL || heap.abandoned || bytes > heap.bytes) return tpcore_reserve(bytes);
    lock();
    void *made = take(bytes);
    unlock();
    return made != NULL ? made : tpcore_reserve(bytes);
}

void tpcore_free(void *made) {
    if (made == NULL) return;
    if (tpcore_heap_offset(made) < 0) {
        if (!give_back_piece(made)) free(made);
    } else if (!heap.abandoned) {
        lock();
        give_back((Block *)made - 1);
        unlock();
    }
}
