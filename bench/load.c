/* Load for the benchmarks, in C with epoll so that it is never what limits a proxy. Loopback only; every mode ends by itself.
 *
 *   load echo PORT                            upstream: sends back what it gets, until killed
 *   load sink PORT                            upstream: reads and forgets, until killed
 *   load messages PORT CONNS SIZE SECONDS     each connection sends a message, waits for its echo, sends the next
 *   load sparse PORT CONNS SIZE SECONDS RATE  RATE messages a second in all, evenly spaced, one connection after another
 *   load connections PORT CONNS SIZE SECONDS [FILE]
 *                                             connect, one echo, close with RST; CONNS of them at any time; what is sent
 *                                             is the first SIZE bytes of FILE
 *   load bulk PORT CONNS SECONDS              each connection sends as fast as it can
 *   load idle PORT CONNS                      one echo on each, then silence until standard input ends
 *
 * Client modes print one line of JSON: units done, seconds taken, and latency percentiles where there are round trips.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 1 << 17, MAX_SAMPLES = 8 << 20, CHUNK = 1 << 18, SETTLED = 1500000 /* µs */ };

static char buffer[CHUNK], message[CHUNK];
static float *samples;
static long sample_count;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void sample(double seconds) {
    if (sample_count < MAX_SAMPLES) samples[sample_count++] = seconds;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(double p) { return sample_count ? samples[(long)((sample_count - 1) * p)] * 1e6 : 0; }

static void report(double units, double seconds, long errors) {
    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("{\"units\": %.0f, \"seconds\": %.6f, \"errors\": %ld, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f}\n",
           units, seconds, errors, percentile(.5), percentile(.99), percentile(.999));
}

static void watch(int epoll, int op, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, op, fd, &event)) fail("epoll_ctl");
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int dial(int port, int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0), one = 1;
    if (fd < 0) fail("socket");
    if (fd >= MAX_FD) { fprintf(stderr, "too many descriptors\n"); exit(1); }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in address = loopback(port);
    if (connect(fd, (void *)&address, sizeof address) && errno != EINPROGRESS) fail("connect");
    return fd;
}

static void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static void serve(int port, int echo) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in address = loopback(port);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) fail("listen");
    int epoll = epoll_create1(0);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN);
    struct epoll_event events[512];
    for (;;) {
        int n = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int client;
                while ((client = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) watch(epoll, EPOLL_CTL_ADD, client, EPOLLIN);
                continue;
            }
            ssize_t size = read(fd, buffer, echo ? 65536 : CHUNK);
            if (size < 0 && errno == EAGAIN) continue;
            if (size <= 0) { close(fd); continue; }
            for (ssize_t sent = 0; echo && sent < size;) {
                ssize_t k = write(fd, buffer + sent, size - sent);
                if (k < 0 && errno != EAGAIN) break;
                if (k > 0) sent += k;
            }
        }
    }
}

static int *connect_all(int port, int count, int epoll) {
    int *fds = calloc(count, sizeof *fds);
    for (int i = 0; i < count; i++) {
        fds[i] = dial(port, 0);
        set_nonblocking(fds[i]);
        if (epoll >= 0) watch(epoll, EPOLL_CTL_ADD, fds[i], EPOLLIN);
    }
    /* One round trip on each: the proxy has then finished setting it up, and nothing of that falls into the measurement. */
    for (int i = 0; i < count; i++) {
        char byte = 'x';
        if (write(fds[i], &byte, 1) != 1) fail("write");
        while (read(fds[i], &byte, 1) != 1)
            if (errno != EAGAIN) fail("read"); else usleep(100);
    }
    return fds;
}

/* The measured span is between two lines on standard output, so that the caller reads the proxy's CPU time there. */
static void begin(void) { printf("begin\n"); fflush(stdout); char c; if (read(0, &c, 1) != 1) exit(1); }

static void messages(int port, int count, int size, double seconds) {
    static int got[MAX_FD];
    static double sent_at[MAX_FD];
    int epoll = epoll_create1(0);
    int *fds = connect_all(port, count, epoll);
    begin();
    double start = now(), end = start + seconds, t = start;
    for (int i = 0; i < count; i++) { sent_at[fds[i]] = t; if (write(fds[i], buffer, size) != size) fail("write"); }
    struct epoll_event events[256];
    double done = 0;
    while ((t = now()) < end) {
        int n = epoll_wait(epoll, events, 256, 100);
        t = now();
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            ssize_t k = read(fd, buffer, CHUNK);
            if (k <= 0) { if (k < 0 && errno == EAGAIN) continue; fprintf(stderr, "connection lost\n"); exit(1); }
            if ((got[fd] += k) < size) continue;
            got[fd] = 0;
            done++;
            sample(t - sent_at[fd]);
            sent_at[fd] = t;
            if (write(fd, buffer, size) != size) fail("write");
        }
    }
    report(done, now() - start, 0);
}

static void sparse(int port, int count, int size, double seconds, double rate) {
    static double sent_at[MAX_FD];
    int epoll = epoll_create1(0);
    int *fds = connect_all(port, count, epoll);
    /* A timer, and a wait in between: a load that spins would keep the upstream, which shares its processor, waiting, and
       the replies would come in heaps. */
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    long interval = 1e9 / rate;
    struct itimerspec every = {{interval / 1000000000, interval % 1000000000}, {0, 1}};
    watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN);
    usleep(SETTLED); /* what a proxy does once for each connection does not belong to its messages */
    begin();
    double start = now(), end = start + seconds, t, done = 0;
    if (timerfd_settime(timer, 0, &every, NULL)) fail("timerfd_settime");
    long turn = 0;
    struct epoll_event events[256];
    while (now() < end) {
        int n = epoll_wait(epoll, events, 256, 100);
        t = now();
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == timer) {
                uint64_t due;
                if (read(timer, &due, sizeof due) != sizeof due) fail("read of the timer");
                for (; due; due--) {
                    fd = fds[turn++ % count];
                    sent_at[fd] = now();
                    if (write(fd, buffer, size) != size) fail("write");
                }
            } else {
                if (read(fd, buffer, CHUNK) <= 0) fail("read");
                sample(t - sent_at[fd]);
                done++;
            }
        }
    }
    report(done, now() - start, 0);
}

static void connections(int port, int count, int size, double seconds) {
    static int got[MAX_FD];
    static double began[MAX_FD];
    int epoll = epoll_create1(0);
    begin();
    double start = now(), end = start + seconds, done = 0;
    long errors = 0;
    for (int i = 0; i < count; i++) { int fd = dial(port, SOCK_NONBLOCK); began[fd] = now(); got[fd] = -1; watch(epoll, EPOLL_CTL_ADD, fd, EPOLLOUT); }
    struct epoll_event events[256];
    struct linger reset = {1, 0};
    while (now() < end) {
        int n = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd, over = 0;
            if (got[fd] < 0) {
                got[fd] = 0;
                if (write(fd, message, size) != size) { errors++; over = 1; }
                else watch(epoll, EPOLL_CTL_MOD, fd, EPOLLIN);
            } else {
                ssize_t k = read(fd, buffer, CHUNK);
                if (k <= 0) { errors++; over = 1; }
                else if ((got[fd] += k) >= size) { done++; sample(now() - began[fd]); over = 1; }
            }
            if (!over) continue;
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            close(fd);
            fd = dial(port, SOCK_NONBLOCK);
            began[fd] = now();
            got[fd] = -1;
            watch(epoll, EPOLL_CTL_ADD, fd, EPOLLOUT);
        }
    }
    report(done, now() - start, errors);
}

static void bulk(int port, int count, double seconds) {
    int epoll = epoll_create1(0);
    for (int i = 0; i < count; i++) { int fd = dial(port, 0); set_nonblocking(fd); watch(epoll, EPOLL_CTL_ADD, fd, EPOLLOUT); }
    begin();
    double start = now(), end = start + seconds, total = 0;
    struct epoll_event events[256];
    while (now() < end) {
        int n = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < n; i++) {
            ssize_t k = write(events[i].data.fd, buffer, CHUNK);
            if (k > 0) total += k; else if (errno != EAGAIN) fail("write");
        }
    }
    report(total, now() - start, 0);
}

int main(int argc, char **argv) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    samples = malloc(MAX_SAMPLES * sizeof *samples);
    memset(buffer, 'x', sizeof buffer);
    memset(message, 'x', sizeof message);
    if (argc < 3) { fprintf(stderr, "usage: see the top of load.c\n"); return 2; }
    const char *mode = argv[1];
    int port = atoi(argv[2]), count = argc > 3 ? atoi(argv[3]) : 0;
    if (!strcmp(mode, "echo") || !strcmp(mode, "sink")) serve(port, mode[0] == 'e');
    else if (!strcmp(mode, "messages") && argc == 6) messages(port, count, atoi(argv[4]), atof(argv[5]));
    else if (!strcmp(mode, "sparse") && argc == 7) sparse(port, count, atoi(argv[4]), atof(argv[5]), atof(argv[6]));
    else if (!strcmp(mode, "connections") && argc == 6) connections(port, count, atoi(argv[4]), atof(argv[5]));
    else if (!strcmp(mode, "connections") && argc == 7) {
        int file = open(argv[6], O_RDONLY), size = atoi(argv[4]);
        if (file < 0 || read(file, message, size) != size) fail(argv[6]);
        connections(port, count, size, atof(argv[5]));
    } else if (!strcmp(mode, "bulk") && argc == 5) bulk(port, count, atof(argv[4]));
    else if (!strcmp(mode, "idle") && argc == 4) { connect_all(port, count, -1); begin(); }
    else { fprintf(stderr, "usage: see the top of load.c\n"); return 2; }
    return 0;
}
