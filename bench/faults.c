/* Fails or kills at the n-th call that touches a file below a folder: a layer over the C library, for LD_PRELOAD.

   fault_arm(below, n, error, stays): the n-th call that can end with this errno, counted from 1, ends with it,
   and with stays all later ones; error 0 kills the process (SIGKILL) instead. fault_count(): calls so far.
   In programs that cannot call it, FAULT_BELOW, FAULT_AT, FAULT_ERRNO and FAULT_STAYS do the same. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READ_OPEN, WRITE_OPEN, WRITE, RENAME, SYNC, FOLDER };

static char below[4096];
static atomic_long counted;
static long at;
static int error_number, stays;

void fault_arm(const char *folder, long n, int error, int for_good) {
    snprintf(below, sizeof below, "%s/", folder);
    at = n, error_number = error, stays = for_good;
    atomic_store(&counted, 0);
}

long fault_count(void) { return atomic_load(&counted); }

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("FAULT_BELOW"), *n = getenv("FAULT_AT");
    if (!folder || !n) return;
    const char *error = getenv("FAULT_ERRNO"), *for_good = getenv("FAULT_STAYS");
    fault_arm(folder, atol(n), error ? atoi(error) : 0, for_good ? atoi(for_good) : 0);
}

/* With FAULT_REPORT, a file, a process adds a line with the count when it ends by itself. */
__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAULT_REPORT");
    below[0] = 0;
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) fprintf(file, "%ld\n", fault_count()), fclose(file);
}

/* Whether Linux ends such a call with this error. */
static int suits(int kind) {
    switch (error_number) {
    case 0: case EIO: return 1;
    case ENOSPC: return kind != READ_OPEN;
    case EMFILE: return kind == READ_OPEN || kind == WRITE_OPEN;
    case EROFS: return kind == WRITE_OPEN || kind == RENAME || kind == FOLDER;
    default: return kind != WRITE && kind != SYNC;
    }
}

static int fails(int kind) {
    if (!suits(kind)) return 0;
    long n = atomic_fetch_add(&counted, 1) + 1;
    if (n != at && !(stays && n > at)) return 0;
    if (!error_number) kill(getpid(), SIGKILL), pause();
    errno = error_number;
    return 1;
}

static int path_fails(int kind, int folder, const char *path) {
    char whole[8192], name[64];
    if (!below[0] || !path) return 0;
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else {
        if (folder == AT_FDCWD) snprintf(name, sizeof name, "/proc/self/cwd");
        else snprintf(name, sizeof name, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(name, whole, 4095);
        if (length < 0) return 0;
        snprintf(whole + length, sizeof whole - length, "/%s", path);
    }
    return !strncmp(whole, below, strlen(below)) && fails(kind);
}

static int descriptor_fails(int kind, int descriptor) {
    char name[64], path[4096];
    if (!below[0]) return 0;
    int before = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return !strncmp(path, below, strlen(below)) && fails(kind);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define MODE mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
#define KIND (flags & (O_WRONLY | O_RDWR | O_CREAT) ? WRITE_OPEN : READ_OPEN)

#define OPEN(name) int name(const char *path, int flags, ...) { \
    REAL(name); MODE return path_fails(KIND, AT_FDCWD, path) ? -1 : real(path, flags, mode); }
OPEN(open) OPEN(open64)
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    REAL(name); MODE return path_fails(KIND, folder, path) ? -1 : real(folder, path, flags, mode); }
OPENAT(openat) OPENAT(openat64)
#define FOPEN(name) FILE *name(const char *path, const char *how) { \
    REAL(name); return path_fails(how[0] == 'r' && !strchr(how, '+') ? READ_OPEN : WRITE_OPEN, AT_FDCWD, path) \
    ? NULL : real(path, how); }
FOPEN(fopen) FOPEN(fopen64)

ssize_t write(int to, const void *bytes, size_t count) {
    REAL(write); return descriptor_fails(WRITE, to) ? -1 : real(to, bytes, count); }
ssize_t writev(int to, const struct iovec *parts, int count) {
    REAL(writev); return descriptor_fails(WRITE, to) ? -1 : real(to, parts, count); }
#define PWRITE(name, offset_type) ssize_t name(int to, const void *bytes, size_t count, offset_type place) { \
    REAL(name); return descriptor_fails(WRITE, to) ? -1 : real(to, bytes, count, place); }
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
size_t fwrite(const void *bytes, size_t size, size_t count, FILE *to) {
    REAL(fwrite); return descriptor_fails(WRITE, fileno(to)) ? 0 : real(bytes, size, count, to); }
ssize_t sendfile(int to, int from, off_t *place, size_t count) {
    static ssize_t (*real)(int, int, off_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile");
    return descriptor_fails(WRITE, to) ? -1 : real(to, from, place, count); }
ssize_t sendfile64(int to, int from, off64_t *place, size_t count) {
    static ssize_t (*real)(int, int, off64_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    return descriptor_fails(WRITE, to) ? -1 : real(to, from, place, count); }
#define ALLOCATE(name, offset_type) int name(int to, offset_type from, offset_type count) { \
    REAL(name); return descriptor_fails(WRITE, to) ? errno : real(to, from, count); }
ALLOCATE(posix_fallocate, off_t) ALLOCATE(posix_fallocate64, off64_t)
#define TRUNCATE(name, offset_type) int name(int to, offset_type length) { \
    REAL(name); return descriptor_fails(WRITE, to) ? -1 : real(to, length); }
TRUNCATE(ftruncate, off_t) TRUNCATE(ftruncate64, off64_t)

#define SYNCS(name) int name(int which) { REAL(name); return descriptor_fails(SYNC, which) ? -1 : real(which); }
SYNCS(fsync) SYNCS(fdatasync)

int rename(const char *from, const char *to) {
    REAL(rename); return path_fails(RENAME, AT_FDCWD, to) ? -1 : real(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat); return path_fails(RENAME, b, to) ? -1 : real(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned int flags) {
    REAL(renameat2); return path_fails(RENAME, b, to) ? -1 : real(a, from, b, to, flags); }
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir); return path_fails(FOLDER, AT_FDCWD, path) ? -1 : real(path, mode); }
