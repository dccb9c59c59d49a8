// Allocates and frees in a loop, from 10,000 different stacks of 20 frames, beside 100,000 blocks
// that live: what the recorder of the malloc stack log is measured with.
//
//   stack_log PAIRS THREADS inner|spread
//
// prints, per pair of malloc and free: CPU nanoseconds, wall nanoseconds. With `inner` the stacks
// differ in their four innermost calls, each of which is one of ten; with `spread` all but the
// outermost calls differ from one allocation to the next: each is one of two, or of 20 at the end.
//
//   stack_log memory BLOCKS LOW HIGH
//
// prints the bytes of memory that the process has more for each of BLOCKS blocks of LOW to HIGH
// bytes.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PATHS = 10000, LIVE = 100000 };

#define NOINLINE __attribute__((noinline))
// Something to do after a call, so that it is no jump; different, so that calls are not merged.
#define KEEP(block, n) __asm__ volatile(".if " #n "\n nop\n .endif" : "+r"(block))
#define CASE(n, call) \
    case n: \
        block = call; \
        KEEP(block, n); \
        break;
#define TEN(call) \
    CASE(0, call) CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call) CASE(5, call) CASE(6, call) \
    CASE(7, call) CASE(8, call) CASE(9, call)

static NOINLINE void *inner1(unsigned path, size_t size) {
    void *block = NULL;
    switch (path % 10) { TEN(malloc(size)) }
    return block;
}

static NOINLINE void *inner2(unsigned path, size_t size) {
    void *block = NULL;
    switch (path % 10) { TEN(inner1(path / 10, size)) }
    return block;
}

static NOINLINE void *inner3(unsigned path, size_t size) {
    void *block = NULL;
    switch (path % 10) { TEN(inner2(path / 10, size)) }
    return block;
}

static NOINLINE void *inner4(unsigned path, size_t size) {
    void *block = NULL;
    switch (path % 10) { TEN(inner3(path / 10, size)) }
    return block;
}

static NOINLINE void *inner(unsigned path, unsigned level, size_t size) {
    void *block = level == 0 ? inner4(path, size) : inner(path, level - 1, size);
    KEEP(block, 1);
    return block;
}

static NOINLINE void *spread(unsigned path, unsigned level, size_t size);

static NOINLINE void *left(unsigned path, unsigned level, size_t size) {
    void *block = spread(path, level, size);
    KEEP(block, 0);
    return block;
}

static NOINLINE void *right(unsigned path, unsigned level, size_t size) {
    void *block = spread(path, level, size);
    KEEP(block, 1);
    return block;
}

static NOINLINE void *spread(unsigned path, unsigned level, size_t size) {
    void *block = NULL;
    if (level == 0) {
        switch (path % 20) {
            TEN(malloc(size))
            CASE(10, malloc(size)) CASE(11, malloc(size)) CASE(12, malloc(size)) CASE(13, malloc(size))
            CASE(14, malloc(size)) CASE(15, malloc(size)) CASE(16, malloc(size)) CASE(17, malloc(size))
            CASE(18, malloc(size)) CASE(19, malloc(size))
        }
        return block;
    }
    unsigned choice = path / 20 >> (level / 2 - 1) & 1;
    block = choice ? left(path, level - 2, size) : right(path, level - 2, size);
    KEEP(block, 1);
    return block;
}

static int is_spread;
static unsigned long pairs;
static pthread_barrier_t begin, end;

static void *allocate(uint64_t number) {
    size_t size = 16 + (number >> 32) % 256;
    // With what is outside of these calls, 20 frames each.
    return is_spread ? spread(number % PATHS, 16, size) : inner(number % PATHS, 12, size);
}

static uint64_t next(uint64_t *random) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random >> 8;
}

static void loop(uint64_t *random, unsigned long count) {
    for (unsigned long pair = 0; pair < count; pair++) {
        char *block = allocate(next(random));
        block[0] = 1;
        free(block);
    }
}

static void *churn(void *seed) {
    uint64_t random = (uintptr_t)seed * 0x9e3779b97f4a7c15 | 1;
    // Each stack was there a few times before time is taken.
    loop(&random, 10 * PATHS);
    pthread_barrier_wait(&begin);
    loop(&random, pairs);
    pthread_barrier_wait(&end);
    return NULL;
}

static double seconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static long resident(void) {
    long all, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld %ld", &all, &pages) != 2)
        exit(2);
    fclose(file);
    return pages * 4096;
}

static int memory(long blocks, size_t low, size_t high) {
    void **all = malloc(blocks * sizeof *all);
    memset(all, 1, blocks * sizeof *all);
    uint64_t random = 88172645463325252;
    long before = resident();
    for (long i = 0; i < blocks; i++) {
        size_t size = low + next(&random) % (high - low + 1);
        all[i] = malloc(size);
        memset(all[i], 1, size);
    }
    printf("%.1f\n", (double)(resident() - before) / blocks);
    return 0;
}

int main(int count, char **arguments) {
    if (count == 5)
        return memory(atol(arguments[2]), strtoul(arguments[3], NULL, 10), strtoul(arguments[4], NULL, 10));
    if (count != 4)
        return 2;
    pairs = strtoul(arguments[1], NULL, 10);
    unsigned threads = strtoul(arguments[2], NULL, 10);
    if (threads < 1 || threads > 16)
        return 2;
    is_spread = strcmp(arguments[3], "spread") == 0;
    static void *live[LIVE];
    uint64_t random = 88172645463325252;
    for (unsigned i = 0; i < LIVE; i++)
        live[i] = allocate(next(&random));
    pthread_t all_threads[16];
    pthread_barrier_init(&begin, NULL, threads + 1);
    pthread_barrier_init(&end, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++)
        pthread_create(&all_threads[i], NULL, churn, (void *)(uintptr_t)(i + 1));
    pthread_barrier_wait(&begin);
    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), wall = seconds(CLOCK_MONOTONIC);
    pthread_barrier_wait(&end);
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, wall = seconds(CLOCK_MONOTONIC) - wall;
    for (unsigned i = 0; i < threads; i++)
        pthread_join(all_threads[i], NULL);
    double all = (double)pairs * threads;
    printf("%.1f %.1f\n", cpu * 1e9 / all, wall * 1e9 / all);
    for (unsigned i = 0; i < LIVE; i++)
        free(live[i]);
    return 0;
}
