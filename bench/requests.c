/* Request and reply, at next to no cost for the one who measures.
 *
 *     requests answer PORT                          answers on "svc.bench" until it is ended; prints "ready" first
 *     requests ask PORT one|mux|own SECONDS FLIGHT  asks, with FLIGHT requests under way; prints what it saw as JSON
 *
 * Inboxes of a request: `mux` = one wildcard subscription, a new last token each time, as clients do it today; `own` = a
 * subscription of its own for each request, SUB and UNSUB included; `one` = the same inbox always.
 *
 * Every reply is checked: each token comes back exactly once (count and sum), otherwise the program ends with status 1.
 * With one request under way its round trips are kept one by one; the JSON gives their quantiles in nanoseconds.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define INPUT_BYTES (1 << 20)
#define REQUEST_BYTES_MAX 256
#define FLIGHT_MAX 65536
#define TRIPS_MAX (1 << 22)
#define PAYLOAD "0123456789abcdef"

static char input[INPUT_BYTES];
static size_t input_size, input_at;
static char output[FLIGHT_MAX * REQUEST_BYTES_MAX];
static size_t output_size;
static uint32_t trips[TRIPS_MAX];

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "requests: %s: %.200s\n", what, detail);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void send_output(int fd) {
    for (size_t sent = 0; sent < output_size;) {
        ssize_t size = send(fd, output + sent, output_size - sent, MSG_NOSIGNAL);
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) fail("send", strerror(errno));
        sent += (size_t)size;
    }
    output_size = 0;
}

static void say(const char *text) {
    size_t size = strlen(text);
    if (output_size + size > sizeof output) fail("output", "too much under way");
    memcpy(output + output_size, text, size);
    output_size += size;
}

/* Reads once; what was not consumed moves to the front. 0: the server closed the connection. */
static int receive(int fd) {
    memmove(input, input + input_at, input_size - input_at);
    input_size -= input_at;
    input_at = 0;
    if (input_size == sizeof input) fail("input", "a line without an end");
    ssize_t size;
    do size = recv(fd, input + input_size, sizeof input - input_size, 0);
    while (size < 0 && errno == EINTR);
    if (size < 0) fail("recv", strerror(errno));
    input_size += (size_t)size;
    return size > 0;
}

/* Points into `input`, until the next read. */
struct frame {
    char *subject, *reply;
};

/* 1: a message, 0: more has to be read. Answers PING; anything else but PONG ends the program. */
static int next_frame(struct frame *frame) {
    for (;;) {
        char *line = input + input_at;
        char *end = memchr(line, '\n', input_size - input_at);
        if (end == NULL) return 0;
        if (strncmp(line, "MSG ", 4) == 0) {
            char *words[5];
            int count = 0;
            size_t head = (size_t)(end - line) + 1;
            char *last = end - 1; /* the size is the last word */
            while (last[-1] != ' ') last--;
            long size = strtol(last, NULL, 10);
            if (input_size - input_at < head + (size_t)size + 2) return 0;
            end[-1] = '\0';
            for (char *word = strtok(line, " "); word != NULL && count < 5; word = strtok(NULL, " "))
                words[count++] = word;
            if (count < 4 || memcmp(line + head + size, "\r\n", 2) != 0) fail("a message is torn", line);
            frame->subject = words[1];
            frame->reply = count == 5 ? words[3] : NULL;
            input_at += head + (size_t)size + 2;
            return 1;
        }
        if (strncmp(line, "PING", 4) == 0)
            say("PONG\r\n");
        else if (strncmp(line, "PONG", 4) != 0)
            fail("not expected", line);
        input_at += (size_t)(end - line) + 1;
    }
}

/* A connection that has carried out `commands`. */
static int connect_to(int port, const char *commands) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("connect", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while (memchr(input, '\n', input_size) == NULL)
        if (!receive(fd)) fail("connect", "closed");
    input_at = input_size; /* INFO */
    say("CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":false,\"protocol\":0}\r\n");
    say(commands);
    say("PING\r\n");
    send_output(fd);
    do
        if (!receive(fd)) fail("connect", "closed");
    while (memchr(input, '\n', input_size) == NULL);
    if (strncmp(input, "PONG", 4) != 0) fail("connect", input);
    input_at = input_size;
    return fd;
}

static int answer(int port) {
    int fd = connect_to(port, "SUB svc.bench 1\r\n");
    char head[REQUEST_BYTES_MAX];
    struct frame frame;
    printf("ready\n");
    fflush(stdout);
    while (receive(fd)) {
        while (next_frame(&frame)) {
            if (frame.reply == NULL) fail("no reply subject", frame.subject);
            int size = snprintf(head, sizeof head, "PUB %s %zu\r\n" PAYLOAD "\r\n", frame.reply, strlen(PAYLOAD));
            if (size >= (int)sizeof head) fail("reply subject is too long", frame.reply);
            say(head);
            if (output_size > sizeof output / 2) send_output(fd);
        }
        send_output(fd);
    }
    return 0;
}

static void ask_once(char mode, uint64_t token) {
    char text[REQUEST_BYTES_MAX];
    int size;
    if (mode == 'o') /* one */
        size = snprintf(text, sizeof text, "PUB svc.bench _INBOX.benchmark.0 %zu\r\n" PAYLOAD "\r\n", strlen(PAYLOAD));
    else if (mode == 'm') /* mux */
        size = snprintf(text, sizeof text, "PUB svc.bench _INBOX.benchmark.%010llu %zu\r\n" PAYLOAD "\r\n",
                        (unsigned long long)token, strlen(PAYLOAD));
    else
        size = snprintf(text, sizeof text,
                        "SUB _INBOX.benchmark.%010llu %llu\r\nUNSUB %llu 1\r\nPUB svc.bench _INBOX.benchmark.%010llu "
                        "%zu\r\n" PAYLOAD "\r\n",
                        (unsigned long long)token, (unsigned long long)token + 2, (unsigned long long)token + 2,
                        (unsigned long long)token, strlen(PAYLOAD));
    if (size >= (int)sizeof text) fail("request", "too long");
    say(text);
}

static int ascending(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static int ask(int port, const char *how, double seconds, long flight) {
    char mode = strcmp(how, "own") == 0 ? 's' : how[0];
    int fd = connect_to(port, mode == 's' ? "" : "SUB _INBOX.benchmark.* 1\r\n");
    uint64_t asked = 0, answered = 0, sum_asked = 0, sum_answered = 0;
    size_t kept = 0;
    uint64_t began = now_ns(), sent = began, ended = began, until = began + (uint64_t)(seconds * 1e9);
    struct frame frame;
    for (; (long)asked < flight; asked++) {
        ask_once(mode, asked);
        sum_asked += mode == 'o' ? 0 : asked;
    }
    send_output(fd);
    while (answered < asked) {
        if (!receive(fd)) fail("ask", "the server closed the connection");
        uint64_t came = 0;
        while (next_frame(&frame)) {
            char *token = strrchr(frame.subject, '.');
            if (token == NULL) fail("not an inbox", frame.subject);
            sum_answered += strtoull(token + 1, NULL, 10);
            came++;
        }
        ended = now_ns();
        answered += came;
        if (flight == 1 && came == 1 && kept < TRIPS_MAX) trips[kept++] = (uint32_t)(ended - sent);
        if (ended < until)
            for (; came > 0; came--, asked++) {
                ask_once(mode, asked);
                sum_asked += mode == 'o' ? 0 : asked;
            }
        sent = now_ns();
        if (output_size > 0) send_output(fd);
    }
    if (answered != asked || sum_answered != sum_asked) fail("ask", "replies are doubled or wrong");
    qsort(trips, kept, sizeof *trips, ascending);
    printf("{\"requests\": %llu, \"seconds\": %.9f, \"p50_ns\": %u, \"p99_ns\": %u}\n", (unsigned long long)answered,
           (double)(ended - began) / 1e9, kept ? trips[kept / 2] : 0, kept ? trips[kept * 99 / 100] : 0);
    return 0;
}

int main(int count, char **words) {
    if (count == 3 && strcmp(words[1], "answer") == 0) return answer(atoi(words[2]));
    if (count == 6 && strcmp(words[1], "ask") == 0) {
        long flight = atol(words[5]);
        if (flight < 1 || flight > FLIGHT_MAX) fail("FLIGHT", words[5]);
        return ask(atoi(words[2]), words[3], atof(words[4]), flight);
    }
    fprintf(stderr, "usage: requests answer PORT | requests ask PORT one|mux|own SECONDS FLIGHT\n");
    return 2;
}
