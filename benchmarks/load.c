/* The load: clients on loopback that check every answer.
 *
 *   load [--tls CA] echo PORT CONNECTIONS DEPTH SECONDS MESSAGES
 *       each connection sends DEPTH lines of 64 bytes at once, waits for all of them to come back,
 *       and sends the next; until SECONDS have passed or MESSAGES have been answered
 *   load talk PORT ...
 *       as echo, but sleeps while it waits, to leave the core to others
 *   load oneshot PORT PARALLEL SECONDS MESSAGES
 *       connect, one line, its echo, wait for the server's close; again, PARALLEL at a time
 *   load source PORT BYTES PACE
 *       one line asks for a transfer; BYTES of the known pattern have to come; with PACE above 0,
 *       wait half a second first and then take at most PACE bytes a second
 *   load sink PORT BYTES
 *       sends BYTES, then waits for the line "done"
 *   load idle PORT CONNECTIONS
 *       opens them, has one line echoed on each, and holds them
 *
 * Prints "ready" once connected and warm, starts on a line from standard input (`idle` ends on it)
 * and prints "MESSAGES SECONDS P50 P99 LONGEST", the last three in microseconds a round trip.
 * load.py does the same in Python. TLS needs a build with -DTLS -lssl -lcrypto.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

enum { LINE = 64, BLOCK = 65536, BATCH = 256, MAX_SAMPLES = 1 << 20, SPINS = 10000, GIVE_UP = 20000 };

struct connection {
    int fd;
    SSL *ssl;          /* null on a plain connection */
    char *sent;        /* what has to come back */
    long size;         /* of that */
    long written, got; /* of that */
    double since;      /* when it was sent */
};

static struct sockaddr_in server;
static char scratch[1 << 20];
static float samples[MAX_SAMPLES];
static long sample_count;
static unsigned long serial;
static int spinning;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, ": %s\n", strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void wait_for_go(void) {
    char line[16];
    printf("ready\n");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(0);
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void report(long messages, double seconds) {
    qsort(samples, sample_count, sizeof *samples, compare);
    double last = sample_count ? samples[sample_count - 1] : 0;
    double p50 = sample_count ? samples[sample_count / 2] : 0;
    double p99 = sample_count ? samples[sample_count * 99 / 100] : 0;
    printf("%ld %.6f %.1f %.1f %.1f\n", messages, seconds, p50, p99, last);
}

#ifdef TLS
static SSL_CTX *context;

static void use_tls(const char *authority) {
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(context, 1);
    if (!SSL_CTX_load_verify_locations(context, authority, NULL)) fail("%s", authority);
}

static SSL *shake_hands(int fd) {
    if (!context) return NULL;
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    SSL_set_tlsext_host_name(ssl, "localhost");
    SSL_set1_host(ssl, "localhost");
    if (SSL_connect(ssl) != 1) ERR_print_errors_fp(stderr), fail("handshake");
    return ssl;
}

/* As recv and send tell it: -1 with EAGAIN, or 0 at the end. */
static ssize_t tell(SSL *ssl, int n) {
    if (n > 0) return n;
    int error = SSL_get_error(ssl, n);
    if (error == SSL_ERROR_ZERO_RETURN) return 0;
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return errno = EAGAIN, -1;
    ERR_print_errors_fp(stderr);
    fail("TLS error %d", error);
    return -1;
}
#define TAKE(ssl, data, size) tell(ssl, SSL_read(ssl, data, size))
#define GIVE(ssl, data, size) tell(ssl, SSL_write(ssl, data, size))
#define MORE(ssl) ((ssl) && SSL_has_pending(ssl))
#define END(ssl) ((ssl) ? (SSL_shutdown(ssl), SSL_free(ssl)) : (void)0)
#else
static void use_tls(const char *authority) { fail("built without TLS: %s", authority); }
static SSL *shake_hands(int fd) { return (void)fd, NULL; }
#define TAKE(ssl, data, size) (-1)
#define GIVE(ssl, data, size) (-1)
#define MORE(ssl) 0
#define END(ssl) ((void)0)
#endif

static ssize_t take(struct connection *c, char *data, size_t size) {
    return c->ssl ? TAKE(c->ssl, data, size) : recv(c->fd, data, size, 0);
}

static ssize_t give(struct connection *c, const char *data, size_t size) {
    return c->ssl ? GIVE(c->ssl, data, size) : send(c->fd, data, size, MSG_NOSIGNAL);
}

static void dial(struct connection *c) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while (connect(fd, (struct sockaddr *)&server, sizeof server) < 0)
        if (errno != EINTR) fail("connect");
    c->fd = fd;
    c->ssl = shake_hands(fd);
}

static void dial_polled(struct connection *c, int poller) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    dial(c);
    if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0) fail("epoll_ctl");
}

static void hang_up(struct connection *c) {
    END(c->ssl);
    close(c->fd);
    c->fd = -1;
}

static void give_all(struct connection *c, const char *data, long size) {
    while (size > 0) {
        ssize_t n = give(c, data, size);
        if (n < 0 && errno != EINTR) fail("write");
        if (n > 0) data += n, size -= n;
    }
}

/* New lines, none like another, so that an answer to another one is noticed. */
static void compose(struct connection *c) {
    static const char hex[] = "0123456789abcdef";
    for (char *line = c->sent; line < c->sent + c->size; line += LINE) {
        unsigned long n = serial++;
        for (int i = 0; i < 16; i++) line[i] = hex[n >> (4 * i) & 15];
    }
    c->written = c->got = 0;
}

/* Write what fits; the rest goes when the server has read. */
static void push_on(struct connection *c) {
    while (c->written < c->size) {
        ssize_t n = give(c, c->sent + c->written, c->size - c->written);
        if (n < 0) {
            if (errno == EAGAIN || errno == EINTR) return;
            fail("send");
        }
        c->written += n;
    }
}

/* Take what came of an answer; false at the end of the connection. */
static int check_answer(struct connection *c) {
    do {
        ssize_t n = take(c, scratch, sizeof scratch);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
        if (n < 0) fail("read");
        if (n == 0) return 0;
        if (n > c->size - c->got || memcmp(scratch, c->sent + c->got, n))
            errno = 0, fail("a wrong answer");
        c->got += n;
    } while (MORE(c->ssl));
    return 1;
}

/* Spin, for a while: on loopback the sender pays for waking a sleeping receiver, which over a network
 * the client's own machine does. */
static int watch(int poller, struct epoll_event *events) {
    for (int i = 0; i < SPINS && spinning; i++) {
        int ready = epoll_wait(poller, events, BATCH, 0);
        if (ready) return ready;
    }
    int ready = epoll_wait(poller, events, BATCH, GIVE_UP);
    if (ready == 0) fail("no answer in %d ms", GIVE_UP);
    return ready;
}

/* Answers to one batch on every connection that is waiting; stop sending after the deadline. */
static long converse(int poller, struct connection *all, int count, double seconds, long limit) {
    struct epoll_event events[BATCH];
    double end = now() + seconds;
    long answered = 0;
    int busy = count;
    for (int i = 0; i < count; i++) {
        compose(&all[i]);
        all[i].since = now();
        push_on(&all[i]);
    }
    while (busy) {
        int ready = watch(poller, events);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (!check_answer(c)) fail("closed by the server after %ld answers", answered);
            push_on(c);
            if (c->got < c->size) continue;
            answered += c->size / LINE;
            double stamp = now();
            if (sample_count < MAX_SAMPLES) samples[sample_count++] = (stamp - c->since) * 1e6;
            if (stamp >= end || answered >= limit) {
                busy--;
                continue;
            }
            compose(c);
            c->since = stamp;
            push_on(c);
        }
    }
    return answered;
}

static struct connection *dial_all(int poller, int count, int depth) {
    struct connection *all = calloc(count, sizeof *all);
    for (int i = 0; i < count; i++) {
        struct connection *c = &all[i];
        c->size = (long)depth * LINE;
        c->sent = malloc(c->size);
        memset(c->sent, 'x', c->size);
        for (long at = LINE - 1; at < c->size; at += LINE) c->sent[at] = '\n';
        dial_polled(c, poller);
    }
    return all;
}

static void echo(int count, int depth, double seconds, long limit) {
    int poller = epoll_create1(0);
    struct connection *all = dial_all(poller, count, depth);
    converse(poller, all, count, 0.03, limit);
    sample_count = 0;
    wait_for_go();
    double started = now();
    long answered = converse(poller, all, count, seconds, limit);
    report(answered, now() - started);
}

static void idle(int count) {
    int poller = epoll_create1(0);
    struct connection *all = dial_all(poller, count, 1);
    converse(poller, all, count, 0, 1);
    wait_for_go();
}

static void restart(int poller, struct connection *c) {
    if (c->fd >= 0) hang_up(c);
    c->since = now();
    dial_polled(c, poller);
    compose(c);
    push_on(c);
}

static void oneshot(int count, double seconds, long limit) {
    int poller = epoll_create1(0), busy = count;
    long answered = 0;
    struct epoll_event events[BATCH];
    struct connection *all = calloc(count, sizeof *all);
    wait_for_go();
    double started = now(), end = started + seconds;
    for (int i = 0; i < count; i++) {
        all[i] = (struct connection){.fd = -1, .sent = malloc(LINE), .size = LINE};
        memset(all[i].sent, 'x', LINE);
        all[i].sent[LINE - 1] = '\n';
        restart(poller, &all[i]);
    }
    while (busy) {
        int ready = watch(poller, events);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (check_answer(c)) continue;
            if (c->got != c->size) errno = 0, fail("closed before the answer");
            answered++;
            double stamp = now();
            if (sample_count < MAX_SAMPLES) samples[sample_count++] = (stamp - c->since) * 1e6;
            if (stamp < end && answered < limit) {
                restart(poller, c);
            } else {
                hang_up(c);
                busy--;
            }
        }
    }
    report(answered, now() - started);
}

static void fill_block(char *block) {
    for (int i = 0; i < BLOCK; i++) block[i] = i & 255;
}

static void source(long size, double pace) {
    static char block[2 * BLOCK];
    fill_block(block), fill_block(block + BLOCK);
    struct connection c;
    dial(&c);
    wait_for_go();
    double started = now();
    give_all(&c, "go\n", 3);
    if (pace > 0) usleep(500000);
    double reading = now();
    for (long got = 0; got < size;) {
        ssize_t n = take(&c, scratch, BLOCK);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail("closed after %ld of %ld bytes", got, size);
        if (memcmp(scratch, block + got % BLOCK, n)) errno = 0, fail("wrong bytes near %ld", got);
        got += n;
        if (pace > 0) {
            double ahead = reading + got / pace - now();
            if (ahead > 0) usleep(ahead * 1e6);
        }
    }
    report(1, now() - started);
}

static void sink(long size) {
    static char block[BLOCK];
    char answer[16] = "";
    fill_block(block);
    struct connection c;
    dial(&c);
    wait_for_go();
    double started = now();
    for (long left = size; left > 0; left -= BLOCK)
        give_all(&c, block, left < BLOCK ? left : BLOCK);
    for (size_t got = 0; got < 5;) {
        ssize_t n = take(&c, answer + got, 5 - got);
        if (n <= 0) fail("closed before the answer");
        got += n;
    }
    if (strcmp(answer, "done\n")) errno = 0, fail("a wrong answer");
    report(1, now() - started);
}

int main(int argc, char **argv) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (argc > 2 && !strcmp(argv[1], "--tls")) {
        use_tls(argv[2]);
        argc -= 2, argv += 2;
    }
    if (argc < 4) errno = EINVAL, fail("load MODE PORT ...");
    const char *mode = argv[1];
    spinning = sysconf(_SC_NPROCESSORS_ONLN) > 1;
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(argv[2]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!strcmp(mode, "talk")) spinning = 0, mode = "echo";
    if (!strcmp(mode, "echo") && argc == 7)
        echo(atoi(argv[3]), atoi(argv[4]), atof(argv[5]), atol(argv[6]));
    else if (!strcmp(mode, "oneshot") && argc == 6)
        oneshot(atoi(argv[3]), atof(argv[4]), atol(argv[5]));
    else if (!strcmp(mode, "source") && argc == 5)
        source(atol(argv[3]), atof(argv[4]));
    else if (!strcmp(mode, "sink") && argc == 4)
        sink(atol(argv[3]));
    else if (!strcmp(mode, "idle") && argc == 4)
        idle(atoi(argv[3]));
    else
        errno = EINVAL, fail("load %s", mode);
    return 0;
}
