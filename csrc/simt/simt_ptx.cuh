// SPDX-License-Identifier: Apache-2.0
// The intrinsic layer on a GPU: inline PTX.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define KFN static __device__ __forceinline__
#define KFN_MEMBER __device__ __forceinline__
#define HDFN static __host__ __device__ __forceinline__
#define KERNEL __global__
#define UNROLL _Pragma("unroll")
#define NOUNROLL _Pragma("unroll 1")
#define CAE_PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(n) CAE_PRAGMA(unroll n)
namespace dev {
KFN int tid() { return threadIdx.x; }
KFN int bx() { return blockIdx.x; }
KFN int by() { return blockIdx.y; }
KFN int bz() { return blockIdx.z; }
extern __shared__ __align__(1024) unsigned char smem_raw[];
KFN uint32_t smem_base() { return (uint32_t)__cvta_generic_to_shared(smem_raw); }
KFN void sync() { __syncthreads(); }
KFN void syncwarp() { __syncwarp(); }
KFN void named_bar(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
KFN void cp_async16(uint32_t s, const void* g) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s), "l"(g) : "memory");
}
KFN void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
KFN void cp_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
KFN void ldsm4(uint32_t (&r)[4], uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a)
               : "memory");
}
KFN void mma16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
KFN uint4 ldg128(const void* p) { return __ldg((const uint4*)p); }
KFN uint4 ldg128_stream(const void* p) {  // written earlier in this stream: keep it out of the
                                          // read-only path, stream through L2
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
KFN void stg128(void* p, uint4 v) { *(uint4*)p = v; }
KFN void sts128(uint32_t a, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}
KFN uint4 lds128(uint32_t a) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(a)
               : "memory");
  return v;
}
KFN void sts32(uint32_t a, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(v) : "memory");
}
KFN uint32_t lds32(uint32_t a) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
  return v;
}
KFN float fbits(uint32_t u) { return __uint_as_float(u); }
KFN uint32_t ubits(float f) { return __float_as_uint(f); }
KFN float shfl_xor(float v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
KFN int32_t shfl_xor(int32_t v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
KFN double shfl_xor(double v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
KFN float rsqrt(float v) { return rsqrtf(v); }
KFN float fma(float a, float b, float c) { return fmaf(a, b, c); }
KFN float relu(float v) {  // NaN stays NaN, which fmaxf would turn into 0
  float r;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(r) : "f"(v));
  return r;
}
KFN uint32_t pack_half2(float lo, float hi) {  // round to nearest even
  __half2 h = __floats2half2_rn(lo, hi);
  return *reinterpret_cast<uint32_t*>(&h);
}
KFN void unpack_half2(uint32_t v, float& lo, float& hi) {
  const float2 f = __half22float2(*reinterpret_cast<__half2*>(&v));
  lo = f.x;
  hi = f.y;
}
KFN int gx() { return gridDim.x; }
KFN int gy() { return gridDim.y; }
KFN int gz() { return gridDim.z; }
KFN int threads() { return blockDim.x; }
// Global memory, 1 to 16 bytes. load: written by an earlier kernel of this stream.
template <class T>
KFN T load(const T* p) {
  return *p;
}
template <class T>
KFN void store(T* p, T v) {
  *p = v;
}
KFN float ldsf(uint32_t a) { return __uint_as_float(lds32(a)); }
KFN void stsf(uint32_t a, float v) { sts32(a, __float_as_uint(v)); }
KFN double ldsd(uint32_t a) {
  double v;
  asm volatile("ld.shared.f64 %0, [%1];" : "=d"(v) : "r"(a) : "memory");
  return v;
}
KFN void stsd(uint32_t a, double v) {
  asm volatile("st.shared.f64 [%0], %1;" ::"r"(a), "d"(v) : "memory");
}
KFN float shfl(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
KFN int32_t shfl(int32_t v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
KFN float mul(float a, float b) { return __fmul_rn(a, b); }  // never contracted
KFN float add(float a, float b) { return __fadd_rn(a, b); }
KFN double mul(double a, double b) { return __dmul_rn(a, b); }
KFN double add(double a, double b) { return __dadd_rn(a, b); }
KFN float sqrt(float v) { return sqrtf(v); }
KFN float tanh(float v) { return tanhf(v); }
KFN float max(float a, float b) { return fmaxf(a, b); }
KFN int uniform(int v) {
  return __shfl_sync(0xffffffffu, v, 0);
}  // warp-uniform: lets ptxas keep it in uniform registers
KFN void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
KFN void pdl_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SIMT_HOPPER
KFN uint32_t ctarank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
KFN int clustersize() {
  int r;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}
KFN uint32_t mapa(uint32_t a, uint32_t cta) {
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(cta));
  return r;
}
KFN void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
// To shared memory of a block of the cluster, at an address from mapa.
KFN void stsf_cluster(uint32_t a, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(a), "f"(v) : "memory");
}
// Registers from a block's pool, or back to it: by all threads of a warpgroup, a multiple of 8.
template <int N>
KFN void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
KFN void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
KFN void mbar_init(uint32_t b, uint32_t n) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(b), "r"(n) : "memory");
}
KFN void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
KFN void mbar_arrive(uint32_t b) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(b) : "memory");
}
KFN void mbar_arrive_cluster(uint32_t b) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(b) : "memory");
}
KFN void mbar_expect(uint32_t b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
}
KFN bool mbar_try(uint32_t b, uint32_t parity) {
  uint32_t come;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(come)
      : "r"(b), "r"(parity)
      : "memory");
  return come != 0;
}
// What never comes is an error, not a hang: every 512 failed tries the upper word of the
// nanoseconds, which changes each 4.3 s, is looked at, and a trap taken where it changed twice.
KFN void mbar_wait(uint32_t b, uint32_t parity) {
  uint32_t since = 0;
  for (uint32_t tries = 1; !mbar_try(b, parity); ++tries) {
    if (tries % 512 == 0) {
      uint32_t now;
      asm volatile("mov.u32 %0, %%globaltimer_hi;" : "=r"(now));
      if (tries == 512) {
        since = now;
      } else if (now - since >= 2) {
        asm volatile("trap;");
      }
    }
  }
}
KFN void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// 1-D bulk copy (no tensor map needed): own CTA, or multicast to every CTA in mask
KFN void bulk_g2s(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(dst),
      "l"(src), "r"(bytes), "r"(bar)
      : "memory");
}
KFN void bulk_g2s_mc(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1], %2, [%3], %4;" ::"r"(dst),
      "l"(src), "r"(bytes), "r"(bar), "h"(mask)
      : "memory");
}
KFN void wg_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
KFN void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
KFN void wg_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int R>
KFN void wg_touch(float (&d)[R]) {
  UNROLL for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// D[64 x N] += A[64 x 16](smem, K-major) * B[16 x N](smem, K-major)
#define CAE_SUMS4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define CAE_SUMS16(i) CAE_SUMS4(i), CAE_SUMS4((i) + 4), CAE_SUMS4((i) + 8), CAE_SUMS4((i) + 12)
KFN void wgmma_n64(float (&d)[32], uint64_t da, uint64_t db, int acc) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
      "%25,%26,%27,%28,%29,%30,%31}, "
      "%32, %33, p, 1, 1, 0, 0;\n}\n"
      : CAE_SUMS16(0), CAE_SUMS16(16)
      : "l"(da), "l"(db), "r"(acc));
}
KFN void wgmma_n128(float (&d)[64], uint64_t da, uint64_t db, int acc) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
      "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,"
      "%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}\n"
      : CAE_SUMS16(0), CAE_SUMS16(16), CAE_SUMS16(32), CAE_SUMS16(48)
      : "l"(da), "l"(db), "r"(acc));
}
KFN void wgmma_n256(float (&d)[128], uint64_t da, uint64_t db, int acc) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
      "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,"
      "%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,"
      "%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,"
      "%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,"
      "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
      "%128, %129, p, 1, 1, 0, 0;\n}\n"
      : CAE_SUMS16(0), CAE_SUMS16(16), CAE_SUMS16(32), CAE_SUMS16(48), CAE_SUMS16(64),
        CAE_SUMS16(80), CAE_SUMS16(96), CAE_SUMS16(112)
      : "l"(da), "l"(db), "r"(acc));
}
#undef CAE_SUMS16
#undef CAE_SUMS4
#endif
}  // namespace dev
