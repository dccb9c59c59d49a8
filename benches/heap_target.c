/* A heap of a size like a real service's, for measuring how long a scan stops its target.
 *
 *   heap_target [-n BLOCKS]     default 7500000: about 1 GiB asked for, in blocks of 16 to 512 bytes
 *
 * Lists, trees and vectors of pointers, all reachable from one table, but for 0.9 % of the blocks: leaked single
 * blocks, chains and cycles. About 6 % of all words are pointers. A thread spins on the clock, but for when it rests.
 *
 * It prints
 *   blocks COUNT BYTES          what it asked malloc for
 *   leaked COUNT BYTES          how much of that it leaked (stale words may hide a handful)
 *   ready
 * and then answers commands on stdin, one a line:
 *   gap                         "gap NANOSECONDS": the longest time between two looks at the clock since the last "gap"
 *   rest, spin                  the same word: the spinning thread sleeps from now on, or spins again
 *   memcpy                      "memcpy SECONDS BYTES": a plain copy of the whole heap into warm memory
 *   heap                        "heap START END": the addresses of [heap]
 *   fork                        "fork SECONDS": how long fork() takes; the child ends at once
 *   lsan                        "lsan SECONDS": LeakSanitizer's check, where it is linked in (-DLSAN -fsanitize=leak)
 * It ends with the end of stdin. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef LSAN
#include <sanitizer/lsan_interface.h>
#endif

enum { SMALLEST = 16, LARGEST = 512, LONGEST = 60, TEMPORARY = 4096 };

static uint64_t blocks, bytes, leaked, leaked_bytes;
static void **table;
static size_t table_length;
static uint64_t longest_gap;
static bool rests;

/* ---- The heap ---- */

static uint64_t random_number(void)
{
    static uint64_t state = 42;
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Log-uniform between SMALLEST and LARGEST. */
static size_t random_size(void)
{
    static uint16_t sizes[4096];
    if (!sizes[0])
        for (int i = 0; i < 4096; i++)
            sizes[i] = (uint16_t)(SMALLEST * exp(log((double)LARGEST / SMALLEST) * (i + 0.5) / 4096));
    return sizes[random_number() % 4096];
}

/* A block of small numbers, text, and zeros. */
static void **new_block(size_t size)
{
    static const uint64_t contents[] = {0, 1, 0x6f57206f6c6c6548, 0, 0x3ff0000000000000, 12345, 0, 0xffffffffffffffff};
    uint64_t *block = malloc(size);
    if (!block)
        exit(3);
    for (size_t i = 0; i < size / 8; i++)
        block[i] = contents[(i * 7 + size) % 8];
    return (void **)block;
}

/* Every eighth block is freed again some time later, so that the heap has holes. */
static void **new_node(void)
{
    static void *temporary[TEMPORARY];
    size_t size = random_size();
    if (random_number() % 8 == 0) {
        void **slot = &temporary[random_number() % TEMPORARY];
        free(*slot);
        *slot = random_number() % 2 ? new_block(random_size()) : NULL;
    }
    blocks++;
    bytes += size;
    return new_block(size);
}

static void **new_list(int length, bool cycle)
{
    void **last = new_node(), **head = last;
    void **first = head;
    head[0] = NULL;
    for (int i = 1; i < length; i++) {
        void **node = new_node();
        node[0] = head;
        head = node;
    }
    if (cycle)
        first[0] = head;
    return head;
}

static void **new_tree(int length)
{
    void **nodes[LONGEST];
    for (int i = 0; i < length; i++) {
        nodes[i] = new_node();
        nodes[i][0] = nodes[i][1] = NULL;
        if (i > 0)
            nodes[(i - 1) / 2][(i - 1) % 2] = nodes[i];
    }
    return nodes[0];
}

static void **new_vector(int length)
{
    size_t size = (size_t)(length > 1 ? length - 1 : 1) * sizeof(void *);
    void **vector = new_block(size < SMALLEST ? SMALLEST : size);
    blocks++;
    bytes += size < SMALLEST ? SMALLEST : size;
    for (int i = 0; i < length - 1; i++)
        vector[i] = new_node();
    return vector;
}

static void **new_structure(void)
{
    int length = 1 + (int)(random_number() % LONGEST);
    switch (random_number() % 3) {
    case 0:
        return new_list(length, false);
    case 1:
        return new_tree(length);
    default:
        return new_vector(length);
    }
}

static void leak_something(void)
{
    uint64_t blocks_before = blocks, bytes_before = bytes;
    uint64_t kind = random_number() % 4;
    void *volatile lost = new_list(kind < 2 ? 1 : 2 + (int)(random_number() % 8), kind == 3);
    lost = NULL;
    (void)lost;
    leaked += blocks - blocks_before;
    leaked_bytes += bytes - bytes_before;
}

static void build(uint64_t wanted)
{
    table = calloc(wanted, sizeof *table);
    if (!table)
        exit(3);
    while (blocks < wanted) {
        if (leaked * 1000 < blocks * 9)
            leak_something();
        else
            table[table_length++] = new_structure();
    }
}

/* ---- Measuring ---- */

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void *spin(void *unused)
{
    /* Where the target runs with a real-time priority, this thread does not. */
    struct sched_param ordinary = {0};
    pthread_setschedparam(pthread_self(), SCHED_OTHER, &ordinary);
    for (uint64_t last = now();;) {
        while (__atomic_load_n(&rests, __ATOMIC_RELAXED)) {
            usleep(1000);
            last = now();
        }
        uint64_t time = now();
        if (time - last > __atomic_load_n(&longest_gap, __ATOMIC_RELAXED))
            __atomic_store_n(&longest_gap, time - last, __ATOMIC_RELAXED);
        last = time;
    }
    return unused;
}

/* All blocks are in the main arena, but for the table: that is the memory of [heap]. */
static void find_heap(uintptr_t *start, uintptr_t *end)
{
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps) && !strstr(line, "[heap]"))
        ;
    if (!maps || sscanf(line, "%lx-%lx", start, end) != 2)
        exit(3);
    fclose(maps);
}

static void time_fork(void)
{
    uint64_t before = now();
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    uint64_t after = now();
    if (child < 0 || waitpid(child, NULL, 0) != child)
        exit(3);
    printf("fork %.6f\n", (double)(after - before) / 1e9);
}

static void check_leaks(void)
{
#ifdef LSAN
    uint64_t before = now();
    __lsan_do_recoverable_leak_check();
    printf("lsan %.6f\n", (double)(now() - before) / 1e9);
#else
    exit(3);
#endif
}

static void copy_heap(void)
{
    uintptr_t start = 0, end = 0;
    find_heap(&start, &end);
    char *copy = mmap(NULL, end - start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (copy == MAP_FAILED)
        exit(3);
    uint64_t before = now();
    memcpy(copy, (void *)start, end - start);
    printf("memcpy %.6f %lu\n", (double)(now() - before) / 1e9, end - start);
    munmap(copy, end - start);
}

static volatile long pages_a_second;

/* Writes to pages all over the heap, so many in each second: to each the byte that it has. */
static void *keep_writing(void *unused)
{
    enum { PAGE = 4096, TICKS = 1000 };
    uintptr_t start = 0, end = 0, at = 0;
    find_heap(&start, &end);
    for (;; usleep(1000000 / TICKS)) {
        for (long page = 0; page < pages_a_second / TICKS; page++) {
            at = (at + PAGE) % (end - start);
            volatile char *byte = (char *)start + at;
            *byte = *byte;
        }
    }
    return unused;
}

static void write_pages(long mebibytes)
{
    static pthread_t writer;
    pages_a_second = mebibytes << 8;
    if (writer == 0 && mebibytes > 0 && pthread_create(&writer, NULL, keep_writing, NULL) != 0)
        exit(3);
    printf("write %ld\n", mebibytes);
}

int main(int count, char **arguments)
{
    char line[64];
    pthread_t spinner;
    uint64_t wanted = count == 3 && strcmp(arguments[1], "-n") == 0 ? strtoull(arguments[2], NULL, 10) : 7500000;
    if (wanted < 1000 || (count != 1 && count != 3)) {
        fprintf(stderr, "usage: heap_target [-n BLOCKS]\n");
        return 2;
    }
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    build(wanted);
    if (pthread_create(&spinner, NULL, spin, NULL) != 0)
        return 3;
    printf("blocks %lu %lu\nleaked %lu %lu\nready\n", blocks, bytes, leaked, leaked_bytes);
    while (fgets(line, sizeof line, stdin)) {
        if (strcmp(line, "gap\n") == 0)
            printf("gap %lu\n", __atomic_exchange_n(&longest_gap, 0, __ATOMIC_RELAXED));
        else if (strcmp(line, "rest\n") == 0 || strcmp(line, "spin\n") == 0) {
            __atomic_store_n(&rests, line[0] == 'r', __ATOMIC_RELAXED);
            usleep(10000);
            fputs(line, stdout);
        } else if (strcmp(line, "memcpy\n") == 0)
            copy_heap();
        else if (strncmp(line, "write ", 6) == 0)
            write_pages(atol(line + 6));
        else if (strcmp(line, "fork\n") == 0)
            time_fork();
        else if (strcmp(line, "lsan\n") == 0)
            check_leaks();
        else if (strcmp(line, "heap\n") == 0) {
            uintptr_t start = 0, end = 0;
            find_heap(&start, &end);
            printf("heap %lu %lu\n", start, end);
        }
    }
#ifdef LSAN
    _exit(0); /* without another check */
#endif
    return 0;
}
