/* Reads a range of another process with process_vm_readv, in parallel, into memory that is warm: what a copy of a
 * stopped target cannot be faster than.
 *
 *   read_memory PID START END THREADS
 *
 * It prints the seconds that this took: the second of two reads. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>

enum { PIECE = 1 << 20, MOST_THREADS = 64 };

static pid_t pid;
static uintptr_t start, size;
static char *copy;
static atomic_uintptr_t next;

static void *read_pieces(void *unused)
{
    for (uintptr_t at; (at = atomic_fetch_add(&next, PIECE)) < size;) {
        size_t length = size - at < PIECE ? size - at : PIECE;
        struct iovec local = {copy + at, length}, remote = {(void *)(start + at), length};
        if (process_vm_readv(pid, &local, 1, &remote, 1, 0) < 0)
            exit(3);
    }
    return unused;
}

static double read_all(int threads)
{
    struct timespec before, after;
    pthread_t others[MOST_THREADS];
    next = 0;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (int i = 1; i < threads; i++)
        if (pthread_create(&others[i], NULL, read_pieces, NULL) != 0)
            exit(3);
    read_pieces(NULL);
    for (int i = 1; i < threads; i++)
        pthread_join(others[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    return (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9;
}

int main(int count, char **arguments)
{
    int threads = count == 5 ? atoi(arguments[4]) : 0;
    if (threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "usage: read_memory PID START END THREADS\n");
        return 2;
    }
    pid = (pid_t)atoi(arguments[1]);
    start = strtoull(arguments[2], NULL, 0);
    size = strtoull(arguments[3], NULL, 0) - start;
    copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return 3;
    madvise(copy, size, MADV_HUGEPAGE);
    read_all(threads);
    printf("%.6f\n", read_all(threads));
    return 0;
}
