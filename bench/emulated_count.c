/* A plugin of QEMU's user-mode emulation that counts what the emulated processor executes: instructions, and
 * among them the integer dot products that decide whether int8 pays. Whenever the program calls
 * getpriority(MARK, k), which the system refuses without any effect, a line "k instructions dot-products"
 * with the counts of that thread so far goes into the file of the argument out=. Other threads are left out:
 * onnxruntime has some that wake up now and then, a percent of a small inference, whenever the system lets
 * them.
 *
 * Debian's qemu-user comes without qemu-plugin.h. The few functions needed are declared here; these have not
 * changed from version 1 of the interface (QEMU 7.2) to version 2 (QEMU 9), so the version is the compiler's
 * -DPLUGIN_VERSION.
 *
 * A block that an exception leaves half way counts as a whole. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define GETPRIORITY 141 /* the number of the system call on aarch64 */
#define MARK 0x7667

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void translated_callback(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void executed_callback(unsigned, void *);
typedef void called_callback(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                             uint64_t, uint64_t, uint64_t, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_callback *);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed_callback *, int, void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, called_callback *);

int qemu_plugin_version = PLUGIN_VERSION;

static _Thread_local uint64_t instructions, dot_products; /* an emulated thread is a thread of the emulator */
static FILE *out;

/* SDOT or UDOT, of two vectors or of a vector and an element (Arm Architecture Reference Manual, C4.1,
 * Advanced SIMD): each adds sixteen products of bytes. */
static int is_dot_product(uint32_t word) {
    return (word & 0x9FE0FC00u) == 0x0E809400u || (word & 0x9FC0F400u) == 0x0F80E000u;
}

/* What a block holds travels in the pointer: instructions in the lower half, dot products in the upper. */
static void executed(unsigned cpu, void *packed) {
    uint64_t counts = (uint64_t)(uintptr_t)packed;
    (void)cpu;
    instructions += counts & 0xFFFFFFFFu;
    dot_products += counts >> 32;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    uint64_t found = 0, length = qemu_plugin_tb_n_insns(block);
    (void)id;
    for (size_t k = 0; k < length; k++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(block, k)), sizeof word);
        found += is_dot_product(word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)(uintptr_t)(found << 32 | length));
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t which, uint64_t who,
                   uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == GETPRIORITY && (uint32_t)which == MARK) {
        fprintf(out, "%" PRIu32 " %" PRIu64 " %" PRIu64 "\n", (uint32_t)who, instructions, dot_products);
        fflush(out);
    }
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *machine, int argc, char **argv) {
    (void)machine;
    if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) {
        fprintf(stderr, "emulated_count: expected out=FILE, a file that can be written\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
